"""The optimizer of a run: a recipe's own, or any of torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from spfde.train.recipe import Recipe

Groups = list[dict[str, Any]]
Factory = Callable[[Groups], Optimizer]


def recipe_optimizer(recipe: Recipe) -> Factory:
    """Return what makes the recipe's optimizer from parameter groups."""
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adamw":
        return lambda groups: torch.optim.AdamW(groups, betas=(recipe.momentum, recipe.beta2), **common)
    return lambda groups: torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)


def make(factory: Factory, groups: Groups) -> Optimizer:
    """Make an optimizer of parameter groups, and check that it is one that the loop can drive.

    Raises:
        TypeError: it is no torch optimizer.
        ValueError: it does not hold the groups as they are, with `lr`, or needs a closure.
    """
    held = [[id(p) for p in group["params"]] for group in groups]
    optimizer = factory(groups)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected a torch.optim.Optimizer of the groups, got {type(optimizer).__name__},"
            " try optimizer=lambda groups: torch.optim.RMSprop(groups)"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("expected an optimizer that steps without a closure, got LBFGS, try torch.optim.AdamW")
    kept = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    if kept != held or any("lr" not in group or "horizon" not in group for group in optimizer.param_groups):
        raise ValueError(
            "expected an optimizer that holds the groups as they are, each with lr, got other groups,"
            " try optimizer=lambda groups: torch.optim.RMSprop(groups)"
        )
    return optimizer


def parameter_groups(model: nn.Module, freezer: Any, horizons: Mapping[str, float]) -> Groups:
    """Group parameters by the fraction of the training at which their learning rate ends: `horizon`.

    One group per block that will freeze, and one, with horizon 1, for all else.
    """
    left = {id(p): p for p in model.parameters()}
    groups = []
    for block in freezer.blocks if horizons else ():
        if block.name in horizons:
            loose = [p for _, p in block.parameters]
            own = [*loose, *(p for _, module in block.modules for p in module.parameters())]
            params = [p for p in (left.pop(key, None) for key in map(id, own)) if p is not None]
            groups.append({"params": params, "horizon": horizons[block.name]})
    return [*groups, {"params": list(left.values()), "horizon": 1.0}]
