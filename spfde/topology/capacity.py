"""Room for weights that come later: slots of `values` reserved before training starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from spfde.nn import SparseLayer


@torch.no_grad()
def reserve(layer: SparseLayer, capacity: int, optimizer: Optimizer | None = None) -> None:
    """Gives `layer` room for `capacity` blocks (never less than it has), in place: new slots are dead and hold 0.

    The Parameter object stays, so an optimizer that holds it goes on; its state, if it has some, grows too. Call it
    before wrapping a model in DistributedDataParallel, which fixes its buckets to the shapes that it sees.

    Raises:
        ValueError: the layer has fewer blocks than that.
    """
    if capacity > layer.grid.size:
        raise ValueError(f"expected capacity <= {layer.grid.size}, the blocks of the layer, got {capacity}")
    values, old = layer.values, layer.values.shape
    more = capacity - old[0]
    if more <= 0:
        return
    state = {} if optimizer is None else optimizer.state.get(values, {})
    grad, values.grad = values.grad, None
    values.data = _longer(values.data, more)
    values.grad = None if grad is None else _longer(grad, more)
    for key, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.shape == old:
            state[key] = _longer(tensor, more)
    positions, layer.col = layer.positions(), F.pad(layer.col, (0, more))
    layer._build_plan(positions)


def reserve_all(
    layers: Mapping[str, SparseLayer], capacity: Mapping[str, int], optimizer: Optimizer, wrapped: bool
) -> None:
    """Room for that many blocks in each layer, as far as it has them. wrapped: in DistributedDataParallel.

    Raises:
        ValueError: a layer is too small, and wrapped already.
    """
    for name, layer in layers.items():
        wanted = min(capacity[name], layer.grid.size)
        if wanted > layer.values.shape[0] and wrapped:
            raise ValueError(
                f"expected room for {wanted} blocks in {name!r} before DistributedDataParallel, got "
                f"{layer.values.shape[0]}, try spfde.topology.reserve(layer, capacity) before wrapping"
            )
        reserve(layer, wanted, optimizer)


def _longer(tensor: Tensor, more: int) -> Tensor:
    return F.pad(tensor, (0, 0, 0, 0, 0, more))
