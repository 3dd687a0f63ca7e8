"""The optimizer of a run, a recipe's own or any of torch's, and its learning rate and step counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from spfde.freezing import FreezeBlock
from spfde.train.recipe import Recipe

Groups = list[dict[str, Any]]
Factory = Callable[[Groups], Optimizer]


def recipe_optimizer(recipe: Recipe) -> Factory:
    """Return what makes the recipe's optimizer from parameter groups."""
    common = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adamw":
        return lambda groups: torch.optim.AdamW(groups, betas=(recipe.momentum, recipe.beta2), **common)
    return lambda groups: torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)


def moments(optimizer: Optimizer) -> int:
    """Count the tensors that an optimizer keeps of each parameter's size: two or three if it is of Adam's kin."""
    return 2 + bool(optimizer.defaults.get("amsgrad")) if "betas" in optimizer.defaults else 1


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


def parameter_groups(
    model: nn.Module,
    blocks: Iterable[FreezeBlock],
    horizons: Mapping[str, float],
    factors: Mapping[str, float] | None = None,
) -> Groups:
    """Group parameters by the fraction of the training at which their learning rate ends: `horizon`.

    One group per block that has one, with its name as `block` and its factor on the rate as `factor`, and one, with
    horizon 1, for all else.

    Raises:
        ValueError: a horizon is not in (0, 1], or not of one of the blocks.
    """
    names = {block.name: block for block in blocks}
    for name, horizon in horizons.items():
        if name not in names or not 0 < horizon <= 1:
            raise ValueError(
                f"expected horizons in (0, 1] of the blocks {sorted(names)}, got {name!r}: {horizon}, try run.blocks"
            )
    left = {id(p): p for p in model.parameters()}
    groups = []
    for block in (block for name, block in names.items() if name in horizons):
        params = [p for p in (left.pop(id(p), None) for p in block.trainable) if p is not None]
        factor = (factors or {}).get(block.name, 1.0)
        groups.append({"params": params, "horizon": horizons[block.name], "factor": factor, "block": block.name})
    return [*groups, {"params": list(left.values()), "horizon": 1.0}]


def set_learning_rate(optimizer: Optimizer, recipe: Recipe, progress: float) -> float:
    """Set every group's rate for a point of the training in [0, 1]; return that of what never freezes."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("factor", 1.0) * _rate(recipe, progress, group["horizon"])
    return _rate(recipe, progress, 1.0)


def _rate(recipe: Recipe, progress: float, horizon: float) -> float:
    if recipe.schedule == "step":
        return step_rate(progress, recipe.lr, recipe.warmup, recipe.milestones, recipe.gamma)
    return learning_rate(progress, recipe.lr, recipe.warmup, horizon)


def steps_per_epoch(samples: int, batch_size: int, ranks: int = 1) -> int:
    """ceil(samples / batch_size), a last batch of less than 2 samples a rank joining the one before it."""
    steps = math.ceil(samples / batch_size)
    joins = 0 < samples % batch_size < 2 * ranks <= batch_size
    return steps - 1 if steps > 1 and joins else steps


def step_rate(progress: float, peak: float, warmup: float, milestones: Sequence[float], gamma: float) -> float:
    """Peak * min(1, progress / warmup) * gamma ** (number of milestones <= progress).

    Args:
        progress: fraction of the whole planned training that is behind, in [0, 1].
        peak: learning rate after the warm-up.
        warmup: fraction of the training with a linear warm-up.
        milestones: fractions of the training at which the rate drops.
        gamma: factor on the rate at each.
    """
    return peak * _ramp(progress, warmup) * gamma ** sum(milestone <= progress for milestone in milestones)


def learning_rate(progress: float, peak: float, warmup: float, horizon: float = 1.0) -> float:
    """Peak * min(1, progress / warmup) * (1 + cos(pi * progress / horizon)) / 2, and 0 from the horizon on.

    Args:
        progress: fraction of the whole planned training that is behind, in [0, 1]. Counting in fractions
            keeps the schedule whole when sieving shortens the epochs.
        peak: learning rate after the warm-up.
        warmup: fraction of the training with a linear warm-up.
        horizon: fraction of the training at which the rate reaches 0: 1, or where a block freezes. Each block
            then anneals over its own active epochs (SpFDE, NeurIPS 2022, "Layer Freezing Algorithm").
    """
    if progress >= horizon:
        return 0.0
    return peak * _ramp(progress, warmup) * (1 + math.cos(math.pi * progress / horizon)) / 2


def _ramp(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0 else 1.0
