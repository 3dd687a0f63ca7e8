"""What every method asks of a sparse layer: magnitudes, groups, the best stored blocks; and which layers there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.birth import among_highest, keep_highest_in_groups

if TYPE_CHECKING:
    from spfde.topology.base import Topology


def sparse_layers(model: nn.Module, plain: bool = False) -> dict[str, SparseLayer]:
    """The sparse layers of a model, by name.

    Raises:
        ValueError: there are none; or `plain` ones are wanted and one trains its weights through a transform.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    if not layers:
        raise ValueError("expected a model with sparse layers, got none, try spfde.sparsify(model) first")
    for name, layer in layers.items():
        if plain and layer._modules.get("transform") is not None:
            raise ValueError(f"expected {name!r} without a transform, got {layer.transform}, try a fresh model")
    return layers


def check(layers: Mapping[str, SparseLayer], optimizer: Optimizer, method: Topology) -> None:
    """Whether a method can move these layers.

    Raises:
        ValueError: the optimizer does not hold the values of one, or the method cannot take its pattern or transform.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, layer in layers.items():
        if layer.values.requires_grad and id(layer.values) not in held:
            raise ValueError(
                f"expected the optimizer to hold the values of {name!r}, got one that does not (was it built "
                f"before spfde.sparsify?), try building the optimizer afterwards"
            )
        if layer.structure.kind in method.refused:
            raise ValueError(
                f"expected a pattern that {type(method).__name__} has a meaning for, got {layer.pattern!r} in "
                f"{name!r}, try 'unstructured' or another method"
            )
        transform = layer._modules.get("transform")
        if transform is not None and not isinstance(transform, method.transforms):
            raise ValueError(
                f"expected weights that {type(method).__name__} can grow at 0, got {transform} in {name!r}, try GMP "
                f"for Powerprop, Thresholds for learned thresholds"
            )


def magnitude(layer: SparseLayer) -> Tensor:
    """Sum of |value| over each stored block [nnz]."""
    return layer.values.detach()[: layer.nnz].abs().sum((1, 2))


def count_groups(group: Tensor, positions: Tensor | None = None, groups: int | None = None) -> Tensor:
    """How many of the positions (all if None) are in each group [groups]."""
    groups = groups or (int(group[-1]) + 1 if group.numel() else 1)
    if groups == 1:
        return torch.tensor([(group if positions is None else positions).numel()], device=group.device)
    return torch.bincount(group if positions is None else group[positions], minlength=groups)


def highest(layer: SparseLayer, score: Tensor, count: int) -> Tensor:
    """Which stored blocks (bool [nnz]) are the `count` with the highest scores, as the pattern allows."""
    rule, positions = layer.structure, layer.positions()
    group, quota = rule.groups(layer.grid, score.device)[positions], rule.quota(layer.grid, count, score.device)
    if quota.numel() == 1:
        return among_highest(score, count)
    stays = torch.zeros_like(score, dtype=torch.bool)
    stays[keep_highest_in_groups(score, group, quota)] = True
    return stays
