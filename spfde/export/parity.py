"""Whether what was exported computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import as_args, eval_mode, map_tensors, random_state_restored, run, tensors

TOLERANCE = 1e-4  # of the largest output: products of the same float32 weights, added up in another order


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared. checked_by: with what. error: the largest one, of the largest output."""

    path: Path
    checked_by: str
    error: float


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that a model returns in eval mode; its modes and torch's random state stay."""
    with eval_mode(model), random_state_restored(inputs):
        return [tensor.detach() for tensor in tensors(run(model, inputs))]


def compare(got: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> float:
    """The largest difference as a share of the largest output.

    Raises:
        ValueError: their numbers or shapes differ, or it is above `TOLERANCE`.
    """
    if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in wanted]:
        shapes = f"{[list(t.shape) for t in got]} and {[list(t.shape) for t in wanted]}"
        raise ValueError(f"expected {what} to return what the model returns, got outputs of shapes {shapes}")
    scale = max([float(t.abs().max()) for t in wanted if t.numel() and t.is_floating_point()], default=1.0) or 1.0
    apart = [
        float((a.double() - b.double()).abs().max()) / scale for a, b in zip(got, wanted, strict=True) if a.numel()
    ]
    error = max(apart, default=0.0)
    if not error <= TOLERANCE:
        raise ValueError(
            f"expected {what} to compute what the model computes, got outputs that differ by {error:.1e} of the "
            f"largest, try float32 and a model whose forward draws no random numbers in evaluation"
        )
    return error


def other_batch(inputs: Any) -> Any:
    """The inputs with their first sample twice at the end: another batch size, the same kind of samples."""

    def longer(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor

    return map_tensors(longer, inputs)


def batch_dimensions(inputs: Any, of: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with {0: of()} for every tensor that has a first dimension."""
    dimension = of()

    def shape(tensor: Tensor) -> dict[int, Any]:
        return {0: dimension} if tensor.dim() else {}

    args, kwargs = as_args(inputs)
    return map_tensors(shape, args), map_tensors(shape, kwargs)
