"""What a kernel is chosen for, and a choice with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import NamedTuple

import torch

from spfde.sparse.kernel_index import ONE_TAP, Window

STEPS = 8  # density buckets per halving: 9% apart, finer than any measurement of a break-even
EMPTY = 24 * STEPS  # the bucket of a weight that stores next to nothing


class Problem(NamedTuple):
    """The key of every choice: a weight of dense `shape` at work on `batch` inputs.

    A linear weight is [rows, cols]; a convolution's is [out, in / groups, kernel_h, kernel_w], with its window and the
    rows and columns of its output. bucket: see `bucket_of`. block: (outputs, inputs) stored together. dtype: what is
    computed in, on a CPU always float32.
    """

    batch: int
    shape: tuple[int, ...]
    bucket: int
    block: tuple[int, int] = (1, 1)
    window: Window = ONE_TAP
    size: tuple[int, int] = (1, 1)
    dtype: str = "float32"

    @property
    def op(self) -> str:
        """The layer's kind: "linear" or "conv2d"."""
        return "linear" if len(self.shape) == 2 else "conv2d"

    @property
    def whole_outputs(self) -> bool:
        """Whether outputs are stored as a whole (pattern "channel")."""
        return self.block[0] == 1 < self.block[1]

    @property
    def density(self) -> float:
        """The density in the middle of the bucket: what a choice may depend on."""
        return 2 ** (-self.bucket / STEPS)

    @property
    def positions(self) -> int:
        """How often each weight is used."""
        return self.batch * prod(self.size)

    @property
    def multiply_adds(self) -> int:
        """Those of the dense forward product."""
        return self.positions * prod(self.shape)


def bucket_of(stored: int, size: int) -> int:
    """The density stored / size in eighths of a halving: 0 is dense, 8 is a half, 16 a quarter, `EMPTY` the last."""
    return EMPTY if stored == 0 else min(EMPTY, max(0, round(STEPS * log2(size / stored))))


def problem_of(
    shape: tuple[int, ...],
    x_shape: Sequence[int],
    stored: int,
    block: tuple[int, int],
    window: Window,
    device: str,
    dtype: torch.dtype,
) -> Problem:
    """The problem of a weight of dense `shape` with `stored` weights, applied to x of `x_shape` computed in `dtype`."""
    size = window.output_size(x_shape[2], x_shape[3]) if len(shape) == 4 else (1, 1)
    bucket, precision = bucket_of(stored, prod(shape)), "float32" if device == "cpu" else str(dtype)[6:]
    return Problem(x_shape[0], tuple(shape), bucket, tuple(block), window, size, precision)


@dataclass(frozen=True)
class KernelChoice:
    """A kernel, why it was taken, and for what."""

    kernel: str
    reason: str
    problem: Problem
