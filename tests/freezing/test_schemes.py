"""SpFDE's other three schemes: which epochs each block misses, what that saves, and what is out of reach."""

import math

import pytest
import torch
from freezing.models import IMAGES, MODELS
from hypothesis import assume, given
from hypothesis import strategies as st

from spfde.convert.sparsify import sparsify
from spfde.freezing import FreezeSchedule, blocks
from spfde.freezing.costs import training_flops
from spfde.freezing.schemes import delayed_periodic, periodic, single_shot, single_shot_resume
from spfde.train.flops import training_flops as counted

TASKS = {
    "backward": st.lists(st.integers(1, 100), min_size=2, max_size=7),
    "other": st.integers(0, 200),
    "epochs": st.integers(4, 40),
    "interval": st.integers(1, 5),
    "reduction": st.floats(0.001, 0.5),
    "fraction": st.floats(0.2, 1),
}


def made(scheme, backward, other, epochs, interval, reduction, fraction, **own) -> FreezeSchedule | None:
    """The schedule of blocks b0, b1, ...; None where the target is out of reach."""
    names = [f"b{i}" for i in range(len(backward))]
    assume(interval < epochs)
    options = {"epochs": epochs, "interval": interval, "flops_reduction": reduction, "fraction": fraction}
    try:
        return scheme(names, backward, sum(backward) * 1.5 + other, **options, **own)
    except ValueError as error:
        assert "expected flops_reduction <=" in str(error) or "leaves epochs to thaw" in str(error)
        return None


def missed(schedule: FreezeSchedule, epochs: int) -> dict[str, list[int]]:
    """The epochs in which each block is frozen; checks that what is frozen is always the front."""
    found: dict[str, list[int]] = {}
    for epoch, frozen in enumerate(schedule.sets(epochs)):
        assert frozen == schedule.frozen(epoch) and set(frozen) == {f"b{i}" for i in range(len(frozen))}
        for name in frozen:
            found.setdefault(name, []).append(epoch)
    return found


def share(found: dict[str, list[int]], backward, other, epochs) -> float:
    return sum(backward[int(name[1:])] * len(each) for name, each in found.items()) / (
        (sum(backward) * 1.5 + other) * epochs
    )


@given(**TASKS, wanted=st.integers(1, 4))
def test_resume_is_single_shot_moved_forward_by_the_epochs_that_it_thaws(wanted, interval, **task):
    task["interval"] = interval
    whole, moved = (made(scheme, **task) for scheme in (single_shot, single_shot_resume))
    epochs = task["epochs"]
    if whole is None or whole.freezes[0][0] < 2 * interval:
        assert moved is None
        return
    thaw = epochs - moved.changes[-1].epoch
    assert thaw % interval == 0 and moved.freezes[0][0] >= interval
    assert moved.freezes == tuple((epoch - thaw, name) for epoch, name in whole.freezes)
    assert moved.frozen(epochs - thaw - 1) == tuple(name for _, name in whole.freezes)
    assert not any(list(moved.sets(epochs))[epochs - thaw :])
    before, after = missed(whole, epochs), missed(moved, epochs)
    assert {name: len(each) for name, each in before.items()} == {name: len(each) for name, each in after.items()}
    assert moved.saving == whole.saving == pytest.approx(share(after, task["backward"], task["other"], epochs))
    if wanted * interval <= whole.freezes[0][0] - interval:
        own = made(single_shot_resume, **task, thaw_epochs=wanted * interval)
        assert epochs - own.changes[-1].epoch == wanted * interval


@given(**TASKS, delay=st.integers(1, 6))
def test_periodic_groups_are_the_ones_that_save_least_above_the_target(delay, **task):
    backward, epochs, reduction = task["backward"], task["epochs"], task["reduction"]
    assume(delay < epochs)
    found = made(delayed_periodic, **task, delay=delay)
    most = min(max(1, math.floor(task["fraction"] * len(backward) + 0.5)), len(backward) - 1)

    def by_hand(front: int, middle: int) -> dict[str, list[int]]:
        later = range(delay, epochs)
        turns = [4] * front + [2] * middle
        return {f"b{i}": [e for e in later if (e + 1) % period] for i, period in enumerate(turns)}

    sizes = [(front, middle) for front in range(most + 1) for middle in range(most + 1 - front) if front + middle]
    shares = {size: share(by_hand(*size), backward, task["other"], epochs) for size in sizes}
    enough = {size: each for size, each in shares.items() if each >= reduction * (1 - 1e-9)}
    if found is None:
        assert not enough
        return
    frozen = missed(found, epochs)
    assert (
        found.saving
        == pytest.approx(min(enough.values()))
        == pytest.approx(share(frozen, backward, task["other"], epochs))
    )
    assert frozen in [{n: e for n, e in by_hand(*size).items() if e} for size in enough]


def test_periodic_by_hand():
    # Of eight epochs: all train in the first one, then in those that end a period, of 4 and of 2.
    options = {"epochs": 8, "interval": 1, "fraction": 1}
    found = periodic("abc", [3, 2, 9], 24, flops_reduction=0.1, **options)
    assert ["".join(sorted(frozen)) for frozen in found.sets(8)] == ["", "a", "ab", "", "ab", "a", "ab", ""]
    assert found.saving == (3 * 5 + 2 * 3) / (24 * 8)
    assert "from epoch 1 updating the first 1 of 3 blocks in one epoch of 4 and the next 1 in one of 2" in found.reason
    later = delayed_periodic("abc", [3, 2, 9], 24, flops_reduction=0.06, delay=4, **options)
    assert ["".join(sorted(frozen)) for frozen in later.sets(8)] == ["", "", "", "", "ab", "a", "ab", ""]
    assert later.saving == (3 * 3 + 2 * 2) / (24 * 8)


def test_a_schedule_of_many_turns_prints_the_first_and_counts_the_others():
    names = [f"b{i}" for i in range(15)]
    options = {"epochs": 160, "interval": 5, "flops_reduction": 0.2, "fraction": 2 / 3}
    lines = str(periodic(names, [2] * 15, 45, **options)).splitlines()
    assert lines[:2] == ["epoch   1  freeze b0", f"epoch   2  freeze {', '.join(names[1:9])}"] and len(lines) < 12
    assert lines[-2] == "... and 153 more like these, to epoch 159" and "saves 20.9% of all training FLOPs" in lines[-1]


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        (periodic, {"flops_reduction": 0.6}, r"flops_reduction <= 0\.3\d+, the most that .* 10 of 15 blocks by turns"),
        (delayed_periodic, {"delay": 160}, r"delay in \[1, 159\], got 160; try 40"),
        (
            single_shot_resume,
            {"thaw_epochs": 65},
            r"thaw_epochs .* multiple of the interval in \[5, 60\].* got 65; try 60",
        ),
        (single_shot_resume, {"thaw_epochs": 7}, "thaw_epochs .* got 7"),
        (
            single_shot_resume,
            {"flops_reduction": 0.36},
            "a target that leaves epochs to thaw, got flops_reduction 0.36,.* epoch 5",
        ),
    ],
)
def test_what_a_scheme_cannot_do_is_refused(scheme, options, words):
    usual = {"epochs": 160, "interval": 5, "flops_reduction": 0.2, "fraction": 2 / 3}
    with pytest.raises(ValueError, match=f"expected {words}"):
        scheme([f"b{i}" for i in range(15)], [2] * 15, 45, **{**usual, **options})


def test_one_block_alone_takes_no_turns():
    with pytest.raises(ValueError, match=r"expected two blocks or more, as the last never freezes, got \['a'\]"):
        periodic(["a"], [1], 2, epochs=8, interval=1, flops_reduction=0.1, fraction=1)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_the_flops_of_a_step_with_a_front_frozen_are_those_that_it_computes(name, sparse):
    model = MODELS[name]()
    if sparse:
        sparsify(model, sparsity=0.6)
    example = torch.randn(1, *IMAGES[1:])
    parts = blocks(model, example)
    expected = training_flops(parts)
    for front in range(len(parts) + 1):
        assert expected[front] == counted(model, example)
        if front < len(parts):
            parts[front].freeze()
