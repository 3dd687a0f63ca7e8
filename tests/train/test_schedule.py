import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spfde.freezing import Progressive
from spfde.train.build import build
from spfde.train.data import split
from spfde.train.optimizer import learning_rate, step_rate, steps_per_epoch
from spfde.train.session import Inputs

fractions = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 300), st.integers(1, 40))
def test_steps_are_as_many_as_batches(samples, batch_size):
    assert steps_per_epoch(samples, batch_size) == len(split(torch.arange(samples), batch_size))


@given(fractions, st.floats(0, 0.5))
def test_the_rate_stays_between_zero_and_the_peak(progress, warmup):
    assert 0 <= learning_rate(progress, 0.3, warmup) <= 0.3


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    ramp = [learning_rate(p, 1.0, 0.5) / learning_rate(p, 1.0, 0.0) for p in (0.1, 0.2, 0.4)]
    assert ramp == pytest.approx([0.2, 0.4, 0.8])
    assert learning_rate(0.75, 2.0, 0.1) == pytest.approx(1 + math.cos(0.75 * math.pi))
    assert learning_rate(0.25, 2.0, 0.1) > learning_rate(0.26, 2.0, 0.1)


def test_a_blocks_rate_ends_at_its_horizon():
    assert learning_rate(0.25, 1.0, 0.0, horizon=0.5) == pytest.approx(0.5)
    assert learning_rate(0.499, 1.0, 0.0, horizon=0.5) == pytest.approx(0, abs=1e-4)
    assert [learning_rate(p, 1.0, 0.1, horizon=0.5) for p in (0.5, 0.9)] == [0.0, 0.0]
    assert learning_rate(0.0, 1.0, 0.1, horizon=0.0) == 0.0


def test_blocks_that_freeze_have_their_own_group(task):
    session = build(Inputs(task.recipe(), task.model(), task.train, task.test))
    (plan,) = (lever.plan for lever in session.levers if isinstance(lever, Progressive))
    groups = session.optimizer.param_groups
    assert [group["horizon"] for group in groups] == [*(epoch / 4 for epoch, _ in plan), 1.0]
    held = [{id(p) for p in group["params"]} for group in groups]
    for (_, name), params in zip(plan, held, strict=False):
        assert {id(p) for p in session.model.get_submodule(name).parameters()} <= params
    assert sum(map(len, held)) == len(set.union(*held)) == len(list(session.model.parameters()))
    whole = build(Inputs(task.recipe(block_cosine=False), task.model(), task.train, task.test))
    assert [group["horizon"] for group in whole.optimizer.param_groups] == [1.0]


def test_a_step_schedule_drops_at_its_milestones():
    rates = [step_rate(p, 2.0, 0.0, (0.5, 0.75), 0.1) for p in (0.0, 0.499, 0.5, 0.74, 0.75, 1.0)]
    assert rates == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])
    assert step_rate(0.05, 2.0, 0.1, (0.01,), 0.5) == pytest.approx(0.5)


def test_a_recipes_step_schedule_is_one_for_all_blocks(task):
    session = build(
        Inputs(task.recipe(schedule="step", milestones=(0.3,), warmup=0), task.model(), task.train, task.test)
    )
    for progress, rate in ((0.29, 0.1), (0.31, 0.01), (0.99, 0.01)):
        assert session.set_learning_rate(progress) == pytest.approx(rate)
        assert len({group["lr"] for group in session.optimizer.param_groups}) == 1
