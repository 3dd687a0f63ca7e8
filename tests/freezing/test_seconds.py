"""Plans by measured seconds: what is measured, in which order, and what is planned by it."""

import copy

import pytest
import torch
from freezing.models import IMAGES, ResNet
from hypothesis import given
from hypothesis import strategies as st

from spfde.freezing import Progressive, blocks, step_seconds
from spfde.freezing.schemes import SCHEMES
from spfde.freezing.seconds import non_increasing, stage_seconds

NUMBERS = st.lists(st.floats(0.1, 10), min_size=1, max_size=8)


class Work:
    """A clock that advances by what a step has to do: one second for each parameter with a gradient, and one more."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, model) -> None:
        model.zero_grad()
        model(torch.randn(IMAGES)).sum().backward()
        self.now += 1 + sum(p.grad is not None for p in model.parameters())


def test_stages_are_timed_upwards_and_downwards_without_the_first_step_after_a_freeze():
    frozen, seen, now = [0], [], [0.0]

    def freeze(count: int) -> None:
        frozen[0] = count
        now[0] += 100  # of freezing itself nothing counts

    def step() -> None:
        first = not seen or seen[-1] != frozen[0]
        seen.append(frozen[0])
        now[0] += 50 if first else 10 - 3 * frozen[0] + len(seen) % 2

    found = stage_seconds(step, freeze, 2, torch.device("cpu"), rounds=3, clock=lambda: now[0])
    assert seen == [0] * 4 + [1] * 4 + [2] * 8 + [1] * 4 + [0] * 4
    assert found == tuple(pytest.approx(10 - 3 * stage, abs=1) for stage in range(3))


@given(NUMBERS, NUMBERS)
def test_the_nearest_non_increasing_numbers(values, others):
    found = non_increasing(values)
    assert list(found) == sorted(found, reverse=True) and sum(found) == pytest.approx(sum(values))
    assert non_increasing(found) == pytest.approx(found)
    other = sorted((others * len(values))[: len(values)], reverse=True)

    def error(numbers) -> float:
        return sum((a - b) ** 2 for a, b in zip(numbers, values, strict=True))

    assert error(found) <= error(other) + 1e-9
    if values == sorted(values, reverse=True):
        assert list(found) == pytest.approx(values)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_saves_exactly_the_seconds_of_its_plan_where_steps_always_take_the_same(scheme):
    model, work = ResNet(), Work()
    parts = blocks(model, torch.randn(IMAGES))
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    seconds = step_seconds(model, parts, work.step, clock=work)
    assert torch.equal(before, torch.get_rng_state()) and not any(block.is_frozen for block in parts)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert len(seconds) == 4 and seconds[0] == 1 + sum(True for _ in model.parameters())

    plan = {"epochs": 16, "interval": 1, "flops_reduction": 0.2, "scheme": scheme, "target": "seconds"}
    freezer = Progressive(model, parts, seconds=seconds, **plan)
    assert "of all training seconds (target 20.0%" in freezer.reason and freezer.saving >= 0.2
    work.now = 0.0
    for epoch in range(16):
        freezer.begin_epoch(epoch)
        model.train()
        work.step(model)
    assert work.now == pytest.approx((1 - freezer.saving) * 16 * seconds[0])


def test_what_was_measured_is_part_of_the_state_and_wins():
    plan = {"epochs": 16, "interval": 1, "flops_reduction": 0.2, "target": "seconds"}
    first, second = (
        Progressive(model := ResNet(), blocks(model, torch.randn(IMAGES)), seconds=seconds, **plan)
        for seconds in ([9.0, 8.0, 4.0, 1.0], [9.0, 8.5, 8.0, 6.0])
    )
    assert first.plan != second.plan
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and second.plan == first.plan
