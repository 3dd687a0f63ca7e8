"""What an analysis refuses: things that are no tensors, or not of the same samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_samples(a: Any, b: Any, least: int) -> None:
    """Two floating point tensors [n, ...] of the same n >= `least` samples.

    Raises:
        TypeError: one is no floating point tensor.
        ValueError: they have too few samples, or not the same number.
    """
    for name, given in (("a", a), ("b", b)):
        if not isinstance(given, Tensor) or not given.is_floating_point():
            got = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"expected {name} as a floating point tensor [n, ...], got {got}; try activations.float()")
        if given.dim() < 2 or len(given) < least:
            raise ValueError(
                f"expected {name} [n, ...] of at least {least} samples, got {list(given.shape)}; try a larger batch"
            )
    if len(a) != len(b):
        raise ValueError(f"expected a and b of the same samples, got {len(a)} and {len(b)}; try one batch for both")
