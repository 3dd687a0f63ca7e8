"""Optimizers of a recipe and others, learning rates by progress, steps of an epoch."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spfde.freezing import Progressive
from spfde.train import CheckpointError, run_dir
from spfde.train.build import build
from spfde.train.data import split
from spfde.train.optimizer import learning_rate, step_rate, steps_per_epoch
from spfde.train.session import Inputs


def session(task, factory=None, **fields):
    return build(Inputs(task.recipe(**fields), task.model(), task.train, task.test, optimizer=factory))


@pytest.mark.parametrize(
    ("fields", "kind", "options"),
    [
        ({}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}),
        ({"nesterov": True, "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}),
        (
            {"optimizer": "adamw", "momentum": 0.5, "beta2": 0.9, "weight_decay": 0},
            torch.optim.AdamW,
            {"betas": (0.5, 0.9)},
        ),
    ],
)
def test_the_recipes_optimizer_is_torchs_with_its_values(task, fields, kind, options):
    run = session(task, **fields)
    assert type(run.optimizer) is kind
    for group in run.optimizer.param_groups:
        assert {name: group[name] for name in options} == options
    assert len(run.optimizer.param_groups) > 1


def test_any_optimizer_of_torchs_runs_under_the_recipes_schedule(task, tmp_path):
    recipe = task.recipe(epochs=4, lr=0.01, out=tmp_path)
    result = task.fit(recipe, optimizer=lambda groups: torch.optim.RMSprop(groups, lr=99.0))
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert max(record.lr for record in result.epochs) < 0.01
    assert json.loads((tmp_path / run_dir.RUN).read_text())["optimizer"] == "RMSprop"


def test_another_optimizer_does_not_resume(task, tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    recipe = task.recipe(epochs=4, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        task.fit(recipe, on_epoch=stop, optimizer=torch.optim.Adagrad)
    with pytest.raises(CheckpointError, match="expected the checkpoint's optimizer, Adagrad, got SGD, try the one it"):
        task.fit(recipe, resume=True)
    assert len(task.fit(recipe, resume=True, optimizer=torch.optim.Adagrad).epochs) == 4


@pytest.mark.parametrize(
    ("factory", "error", "said"),
    [
        (lambda groups: None, TypeError, r"expected a torch\.optim\.Optimizer of the groups, got NoneType, try"),
        (
            lambda groups: torch.optim.Adam(groups[-1]["params"]),
            ValueError,
            "expected an optimizer that holds the groups",
        ),
        (lambda groups: torch.optim.Adam([{**groups[0]}]), ValueError, "expected an optimizer that holds the groups"),
        (lambda groups: torch.optim.LBFGS(groups[0]["params"]), ValueError, "without a closure, got LBFGS, try"),
    ],
)
def test_what_the_loop_cannot_drive_is_refused(task, factory, error, said):
    with pytest.raises(error, match=said):
        session(task, factory)


def test_groups_without_their_horizon_are_refused(task):
    def forgetful(groups):
        return torch.optim.Adam([{"params": group["params"]} for group in groups])

    with pytest.raises(ValueError, match="holds the groups as they are, each with lr, got other groups, try"):
        session(task, forgetful)


def test_frozen_weights_stay_under_every_optimizer(task):
    kept = {}

    def look(record):
        for name in record.frozen:
            state = [p.clone() for p in model.get_submodule(name).parameters()]
            before = kept.setdefault(name, state)
            assert all(map(torch.equal, before, state))

    for optimizer in ("sgd", "adamw"):
        kept.clear()
        model: nn.Module = task.model()
        task.fit(task.recipe(epochs=6, optimizer=optimizer, clip=1.0, weight_decay=0.1), model, on_epoch=look)
        assert kept


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
