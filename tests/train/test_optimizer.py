"""The recipe's optimizers against torch's own, and any other one through Python."""

import json

import pytest
import torch
from torch import nn

from spfde.train import CheckpointError, run_dir
from spfde.train.build import build
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
