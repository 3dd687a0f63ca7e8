"""The schedule's arithmetic: the paper's numbers, and optimality against every other schedule."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spfde.freezing.schedule import exact_first_epoch, saved
from spfde.freezing.schemes import single_shot


def plan(backward, total, **options):
    names = [f"b{i}" for i in range(len(backward))]
    usual = {"epochs": 160, "interval": 5, "flops_reduction": 0.2, "fraction": 2 / 3}
    return single_shot(names, backward, total, **{**usual, **options})


@pytest.mark.parametrize(
    ("reduction", "closed", "first"),
    [(0.10, 101.5, 100), (0.15, 83.5, 80), (0.20, 65.5, 65), (0.25, 47.5, 45), (0.30, 29.5, 25), (0.35, 11.5, 10)],
)
def test_fifteen_equal_blocks_start_where_the_closed_form_says(reduction, closed, first):
    # T - (x F T + dT sum i b_i) / sum b_i with b = 2, F = 45: 160 - (7200 x + 450) / 20
    times = {"epochs": 160, "interval": 5}
    assert exact_first_epoch([2.0] * 10, reduction * 45 * 160, **times) == pytest.approx(closed, rel=1e-12)
    steps = plan([2.0] * 15, 45, flops_reduction=reduction).freezes
    assert [epoch for epoch, _ in steps] == [first + 5 * i for i in range(10)]
    assert [name for _, name in steps] == [f"b{i}" for i in range(10)]


def test_saved_by_hand():
    # 3 for 10 - 4 epochs, 2 for 10 - 7, 5 not at all: it would freeze when training is over
    assert saved([3, 2, 5], 4, epochs=10, interval=3) == 3 * 6 + 2 * 3 + 5 * 0
    assert saved([3, 2, 5], 5, epochs=10, interval=3) == 3 * 5 + 2 * 2


def test_a_target_met_exactly_at_a_boundary_starts_there():
    # one block of backward 2 in a model of 3, frozen for 6 of 10 epochs: 12 of 30 FLOPs
    found = plan([2], 3, epochs=10, interval=2, flops_reduction=0.4, fraction=1)
    assert found.freezes == ((4, "b0"),) and found.saving == pytest.approx(0.4)
    assert plan([2], 3, epochs=10, interval=2, flops_reduction=0.4001, fraction=1).freezes == ((2, "b0"),)
    assert 0.14 * (5 * 10) > 7  # rounding must not cost an interval
    assert plan([1], 5, epochs=10, interval=3, flops_reduction=0.14, fraction=1).freezes == ((3, "b0"),)


@given(
    backward=st.lists(st.integers(0, 100), min_size=1, max_size=8),
    other=st.integers(0, 300),
    epochs=st.integers(2, 60),
    interval=st.integers(1, 9),
    reduction=st.floats(0.001, 0.7),
    fraction=st.floats(0.05, 1),
)
def test_the_start_is_the_latest_boundary_that_meets_the_target(backward, other, epochs, interval, reduction, fraction):
    total = sum(backward) * 1.5 + other
    assume(total > 0)
    count = max(1, math.floor(fraction * len(backward) + 0.5))
    credit, whole = backward[:count], total * epochs

    def share(first: int) -> float:
        return sum(b * max(0, epochs - first - i * interval) for i, b in enumerate(credit)) / whole

    options = {"epochs": epochs, "interval": interval, "fraction": fraction}
    starts = [e for e in range(1, epochs) if e % interval == 0 and share(e) >= reduction * (1 - 1e-9)]
    if not starts:
        with pytest.raises(ValueError, match="expected flops_reduction <="):
            plan(backward, total, flops_reduction=reduction, **options)
        return
    found = plan(backward, total, flops_reduction=reduction, **options)
    first = found.freezes[0][0]
    assert first == max(starts) and 0 < first < epochs
    assert found.saving == pytest.approx(share(first))
    assert all(epoch < epochs for epoch, _ in found.freezes) and len(found.freezes) <= count
    exact = exact_first_epoch(credit, reduction * whole, epochs=epochs, interval=interval)
    assert saved(credit, exact, epochs=epochs, interval=interval) == pytest.approx(reduction * whole, rel=1e-6)
    assert f"{exact:.1f}" in found.reason


def test_an_unreachable_target_names_the_largest_reachable_one_which_works():
    with pytest.raises(ValueError, match=r"expected flops_reduction <= (0\.\d+).*got 0\.9; try") as error:
        plan([2.0] * 15, 45, flops_reduction=0.9)
    largest = float(str(error.value).split("<= ")[1].split(",")[0])
    assert largest == pytest.approx(20 * (160 - 5 - 22.5) / (45 * 160), abs=1e-4)
    assert plan([2.0] * 15, 45, flops_reduction=largest).freezes[0][0] == 5
    with pytest.raises(ValueError, match="try that, a larger fraction or more epochs"):
        plan([2.0] * 15, 45, flops_reduction=largest + 1e-3)


def test_a_plan_prints_as_a_table_with_its_reason():
    text = str(plan([2.0] * 15, 45))
    assert text.splitlines()[0] == "epoch  65  freeze b0" and text.splitlines()[9] == "epoch 110  freeze b9"
    reason = text.splitlines()[10]
    assert "10 of 15 blocks from epoch 65" in reason and "20.1%" in reason and "epoch 65.5" in reason
