"""What every method asks of a sparse layer: magnitudes, groups, the best stored blocks; and which layers there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.no_sync import count_each
from spfde.topology.topk import keep_highest_in_groups

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


def check_schedule(method: Topology, total_steps: int, every: int, drop_fraction: float | None) -> float | None:
    """The drop fraction that is meant: the method's own where none is given.

    Raises:
        ValueError: an argument is out of range, or the method has no use for a drop fraction.
    """
    if total_steps < 1:
        raise ValueError(f"expected total_steps >= 1, got {total_steps}")
    if every < 1:
        raise ValueError(f"expected every >= 1 (optimizer steps between updates), got {every}")
    if method.default_drop is None and drop_fraction is not None:
        raise ValueError(
            f"expected no drop_fraction, which {type(method).__name__} does not have, got {drop_fraction}, try "
            f"leaving it out"
        )
    drop_fraction = method.default_drop if drop_fraction is None else drop_fraction
    if drop_fraction is not None and not 0 <= drop_fraction <= 1:
        raise ValueError(f"expected drop_fraction in [0, 1] (share of the stored weights), got {drop_fraction}")
    return drop_fraction


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
        if layer.pattern.kind in method.refused:
            raise ValueError(
                f"expected a pattern that {type(method).__name__} has a meaning for, got {str(layer.pattern)!r} in "
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


def count_groups(group: Tensor, groups: int, positions: Tensor | None = None) -> Tensor:
    """How many of the positions (all if None) are in each group [groups]; of one group as `Pattern.quota` has it."""
    if groups == 1:
        return torch.tensor([(group if positions is None else positions).numel()])
    return count_each(group if positions is None else group[positions], groups)


def highest(layer: SparseLayer, score: Tensor, count: int) -> Tensor:
    """Which stored blocks (slots, ascending) are the `count` with the highest scores, as the pattern allows."""
    rule, positions = layer.pattern, layer.positions()
    group, quota = rule.groups(layer.grid, score.device)[positions], rule.quota(layer.grid, count, score.device)
    return keep_highest_in_groups(score, group, quota)
