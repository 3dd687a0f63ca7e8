"""A model of somebody else's library, small and randomly initialised, with one batch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spfde import _modules

Batch = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """How to make a model and its batch: a tuple of positional inputs or a dictionary of keyword arguments.

    seed: of the batch.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    seed: int = 1

    def model(self) -> nn.Module:
        """The model in training mode; random numbers drawn in training are off, so that precisions can be compared."""
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, nn.Module) and type(module).__name__.startswith(("Dropout", "DropPath")):
                for rate in ("p", "drop_prob"):
                    if hasattr(module, rate):
                        setattr(module, rate, 0.0)
        return model.train()

    def inputs(self) -> Batch:
        torch.manual_seed(self.seed)
        return self.batch()


def images(batch: int = 4, size: int = 64, channels: int = 3) -> Callable[[], Batch]:
    return lambda: (torch.randn(batch, channels, size, size),)


def tensors(output: Any) -> Iterator[Tensor]:
    """The floating point tensors of a model's output, in order."""
    return (tensor for tensor in _modules.tensors(output) if tensor.is_floating_point())


def call(model: nn.Module, batch: Batch) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `change` applied to its floating point tensors."""

    def one(part: Any) -> Any:
        return change(part) if isinstance(part, Tensor) and part.is_floating_point() else part

    if isinstance(batch, dict):
        return {name: one(part) for name, part in batch.items()}
    return tuple(one(part) for part in batch)
