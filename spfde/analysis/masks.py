"""How alike two masks are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def mask_similarity(a: Tensor, b: Tensor, top: float = 1.0) -> float:
    """The share of non-zero positions that two weights have in common: 1 for the same mask, 0 for none shared.

    2 |A and B| / (|A| + |B|), which is the share of either where both have as many. Dynamic sparse training goes on
    exchanging small weights when its structure has settled, so the paper looks at the larger half: `top=0.5`.

    Args:
        a: a weight, or with top=1 a bool mask: `layer.mask()`, `layer.dense_weight()`.
        b: another of the same shape.
        top: share of each side's non-zeros that counts, the largest by magnitude, in (0, 1]; at least one.

    Raises:
        TypeError: `a` or `b` is no tensor, or is a mask, which has no magnitudes, although top is below 1.
        ValueError: their shapes differ, or top is out of its range.

    Source: SpFDE (NeurIPS 2022), section 3, structural similarity.
    """
    real = isinstance(top, int | float) and not isinstance(top, bool)
    if not real or not 0 < top <= 1:
        raise ValueError(f"expected top in (0, 1], got {top!r}; try 0.5")
    for name, given in (("a", a), ("b", b)):
        _check(name, given, top)
    if a.shape != b.shape:
        raise ValueError(
            f"expected masks of one shape, got {list(a.shape)} and {list(b.shape)}; try one layer at two times"
        )
    ours, theirs = _largest(a, top), _largest(b, top)
    stored = int(ours.sum()) + int(theirs.sum())
    return 2 * int((ours & theirs).sum()) / stored if stored else 1.0


def _check(name: str, given: Any, top: float) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"expected {name} as a tensor, got {type(given).__name__}; try layer.mask()")
    if given.dtype == torch.bool and top < 1:
        raise TypeError(f"expected {name} as a weight with top={top:g}, got a bool mask; try layer.dense_weight()")


def _largest(weight: Tensor, top: float) -> Tensor:
    """The non-zero positions that count [numel]; of equal magnitudes the first ones."""
    flat = weight.detach().flatten()
    stored = flat != 0
    if top == 1:
        return stored
    count = math.ceil(top * int(stored.sum()))
    kept = torch.zeros_like(stored)
    kept[torch.sort(flat.abs(), descending=True, stable=True).indices[:count]] = True
    return kept
