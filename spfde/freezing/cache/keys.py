"""The key of a sample and one of its variants: index * variants + variant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keys_of(indices: Tensor, variant: Tensor | None, samples: int | None, variants: int) -> list[int]:
    """One whole number for each of `indices` [n] and `variant` [n]; None is the only variant.

    Raises:
        TypeError: they are no int64 [n].
        ValueError: they are outside of [0, samples) (if that is known) and [0, variants), or not as many.
    """
    listed = _listed("indices", indices, samples)
    if variant is None and variants == 1:
        return listed
    if variant is None:
        raise ValueError(f"expected a variant in [0, {variants}) of each sample, got none, try variant=")
    which = _listed("variant", variant, variants)
    if len(which) != len(listed):
        raise ValueError(f"expected one variant for each of {len(listed)} indices, got {len(which)}, try as many")
    return [sample * variants + each for sample, each in zip(listed, which, strict=True)]


def check_indices(name: str, indices: Tensor) -> None:
    """TypeError unless they are int64 [n]."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 1:
        got = f"{indices.dtype} {list(indices.shape)}" if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"expected {name} as an int64 tensor [n], got {got}, try torch.tensor([0, 1])")


def _listed(name: str, indices: Tensor, end: int | None) -> Sequence[int]:
    check_indices(name, indices)
    values = indices.tolist()
    outside = [] if end is None or not values or (min(values) >= 0 and max(values) < end) else values
    for value in outside:
        if not 0 <= value < end:
            raise ValueError(f"expected {name} in [0, {end}), got {value}, try those of the data set")
    return values
