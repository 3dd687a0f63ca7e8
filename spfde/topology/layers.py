"""The sparse layers of a model as a topology sees them: found, checked, their state at an update, room for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.pattern import Grid
from spfde.topology.moves import count_groups
from spfde.topology.optimizer_state import check, enlarge
from spfde.topology.topk import keep_highest_in_groups


@dataclass(frozen=True, eq=False)
class LayerState:
    """One layer at an update, worked out once.

    name, module: the layer. positions: of the stored blocks [nnz], ascending; a *slot* is an index into them. group: of
    every position of the grid [grid size], what the pattern counts in (`Pattern.groups`). held: stored blocks of each
    group [groups].
    """

    name: str
    module: SparseLayer
    positions: Tensor
    group: Tensor
    held: Tensor

    @classmethod
    def of(cls, name: str, layer: SparseLayer) -> LayerState:
        """The state of a layer now."""
        pattern, positions = layer.pattern, layer.positions()
        group = pattern.groups(layer.grid, positions.device)
        return cls(name, layer, positions, group, count_groups(group, pattern.parts(layer.grid), positions))

    @property
    def grid(self) -> Grid:
        """How the pattern cuts the weight into blocks."""
        return self.module.grid

    @property
    def nnz(self) -> int:
        """Number of stored blocks."""
        return self.positions.numel()

    @property
    def room(self) -> Tensor:
        """Blocks of each group that are not stored [groups]."""
        return count_groups(self.group, self.held.numel()) - self.held

    def quota(self, count: int) -> Tensor:
        """How many blocks each group holds when the layer holds `count` [groups]."""
        return self.module.pattern.quota(self.grid, count, self.positions.device)

    def highest(self, score: Tensor, count: int) -> Tensor:
        """Slots (ascending) of the `count` stored blocks with the highest scores [nnz], as the pattern allows."""
        return keep_highest_in_groups(score, self.group[self.positions], self.quota(count))


def magnitude(layer: SparseLayer) -> Tensor:
    """Sum of |value| over each stored block [nnz]."""
    return layer.values.detach()[: layer.nnz].abs().sum((1, 2))


def sparse_layers(model: nn.Module, plain: bool = False) -> dict[str, SparseLayer]:
    """The sparse layers of a model, by name.

    Raises:
        ValueError: there are none; values are computed, or shared by two layers; or `plain` ones are wanted and one
            trains its weights through a transform.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    if not layers:
        raise ValueError("expected a model with sparse layers, got none, try spfde.sparsify(model) first")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        layer.check_values(name)
        owner = owners.setdefault(id(layer.values), name)
        if owner != name:
            raise ValueError(
                f"expected every layer to have values of its own, got {owner!r} and {name!r} with the same Parameter, "
                f"whose slots only one index can place, try one layer in both places"
            )
        if plain and layer._modules.get("transform") is not None:
            raise ValueError(f"expected {name!r} without a transform, got {layer.transform}, try a fresh model")
    return layers


def check_layers(layers: Mapping[str, SparseLayer], optimizer: Optimizer, method: Any) -> None:
    """Refuses layers that a topology cannot move.

    Raises:
        TypeError: the optimizer is none.
        ValueError: the optimizer does not hold the values of one, or the method cannot take its pattern or transform.
    """
    if not hasattr(optimizer, "param_groups"):
        got = type(optimizer).__name__
        raise TypeError(f"expected an optimizer, got {got}, try torch.optim.SGD(model.parameters(), lr=0.1)")
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
                f"for Powerprop, Thresholds for learned thresholds, the end of the training for gates"
            )


@torch.no_grad()
def reserve(layer: SparseLayer, capacity: int, optimizer: Optimizer | None = None) -> None:
    """Gives `layer` room for `capacity` blocks (never less than it has), in place: new slots are dead and hold 0.

    The Parameter object stays, so an optimizer that holds it goes on; its state, if it has some, grows too. Call it
    before wrapping a model in DistributedDataParallel, which fixes its buckets to the shapes that it sees.

    Raises:
        ValueError: the layer has fewer blocks than that, or values that are computed.
    """
    layer.check_values()
    if capacity > layer.grid.size:
        raise ValueError(f"expected capacity <= {layer.grid.size}, the blocks of the layer, got {capacity}")
    values, old = layer.values, layer.values.shape
    if optimizer is not None and capacity > old[0]:
        check(optimizer, {"": layer})
    layer.enlarge(capacity)
    if optimizer is not None and values.shape != old:
        enlarge(optimizer, values, old)


def reserve_all(
    layers: Mapping[str, SparseLayer], capacity: Mapping[str, int], optimizer: Optimizer, wrapped: bool
) -> None:
    """Room for that many blocks in each layer, as far as it has them. wrapped: in one that fixes shapes.

    Raises:
        ValueError: a layer is too small, and wrapped already.
    """
    wanted = {name: min(capacity[name], layer.grid.size) for name, layer in layers.items()}
    for name, layer in layers.items():
        if wrapped and wanted[name] > layer.values.shape[0]:
            raise ValueError(
                f"expected room for {wanted[name]} blocks in {name!r} before DistributedDataParallel or fully_shard, "
                f"got {layer.values.shape[0]}, try spfde.topology.reserve(layer, capacity) before wrapping"
            )
    for name, layer in layers.items():
        reserve(layer, wanted[name], optimizer)
