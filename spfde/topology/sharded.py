"""Layers whose stored weights are shared out to ranks by `fully_shard` (FSDP2): whole while their masks move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spfde.nn import SparseLayer
from spfde.topology.optimizer_state import optimizers


def is_sharded(layer: SparseLayer) -> bool:
    """Whether this rank has only a part of the layer's values."""
    return hasattr(layer._parameters.get("values"), "device_mesh")


@contextmanager
@torch.no_grad()
def gathered(model: nn.Module, layers: Iterable[SparseLayer], optimizer: Any) -> Iterator[None]:
    """Inside of it the layers' values, gradients and optimizer state are whole; then each rank has its part again.

    Every rank must enter it: each tensor is one all-gather.
    """
    reshard(model)
    wholes = [_Whole(layer, optimizer) for layer in layers if is_sharded(layer)]
    try:
        yield
    finally:
        for whole in wholes:
            whole.give_back()


def reshard(model: nn.Module) -> None:
    """Shares out what ran without gradients, which may have stayed whole."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


class _Whole:
    """A layer that has all of its values, with all that an optimizer remembers of them."""

    def __init__(self, layer: SparseLayer, optimizer: Any) -> None:
        self.layer, self.part = layer, layer.values
        self.values = nn.Parameter(self.part.full_tensor(), requires_grad=self.part.requires_grad)
        if self.part.grad is not None:
            self.values.grad = self.part.grad.full_tensor()
        self.states = [one.state for one in optimizers(optimizer) if self.part in one.state]
        for state in self.states:
            state[self.values] = {key: _whole(value) for key, value in state[self.part].items()}
        layer._parameters["values"] = self.values

    def give_back(self) -> None:
        """Leaves each rank its part of what there is now."""
        self.layer._parameters["values"] = self.part
        _write(self.part, self.values.detach())
        if self.part.grad is not None:
            _write(self.part.grad, self.values.grad)
        for state in self.states:
            for key, value in state.pop(self.values).items():
                if hasattr(state[self.part][key], "device_mesh"):
                    _write(state[self.part][key], value)
                else:
                    state[self.part][key] = value


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "device_mesh") else value


def _write(part: Any, whole: Tensor) -> None:
    from torch.distributed.tensor import distribute_tensor

    mine = distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None)
    part.to_local().copy_(mine.to_local())
