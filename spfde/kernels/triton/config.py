"""What is known of GPUs, how a kernel is launched on them, and the table of what was measured.

Pure functions and constants; neither triton nor a GPU is needed. Nothing is tuned while a network trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from spfde.kernels.choice import Problem
from spfde.tiles import STACKED

SIZES = (16, 32, 64, 128)  # sides of blocks that have kernels
MOST_TOKENS = 128  # that a program of a product works on
TILE = 64  # side of the tiles in which the masked product leaves out zeros


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU: rates in units of 10^12 a second.

    half, tf32: floating point operations of dense products in 16 bits and TF32. l2, memory: bytes. shared: bytes of
    shared memory that a program may have. units: multiprocessors.
    """

    name: str
    capability: tuple[int, int]
    units: int
    shared: int
    half: float
    tf32: float
    l2: float
    memory: float

    def rate(self, dtype: torch.dtype) -> float:
        """Of dense products in this precision, float32 as TF32."""
        return self.tf32 if dtype == torch.float32 else self.half


KIB = 1024
# H200: products and memory measured, L2 and TF32 assumed. The others from data sheets, their L2 assumed.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("NVIDIA H200", (9, 0), 132, 227 * KIB, 790, 395, 5.5, 4.3),
        Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163 * KIB, 270, 135, 4.5, 2.0),
        Gpu("NVIDIA GeForce RTX 3060", (8, 6), 28, 99 * KIB, 51, 25, 1.2, 0.36),
        Gpu("Orin", (8, 7), 16, 163 * KIB, 42.5, 21, 0.7, 0.2),
        Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 99 * KIB, 165, 82, 4.5, 1.0),
    )
}


def gpu_of(name: str, capability: tuple[int, int], units: int, shared: int) -> Gpu:
    """The GPU, or for one that is not listed the nearest older architecture's, scaled to its multiprocessors."""
    if name in GPUS:
        return GPUS[name]
    known = sorted(GPUS.values(), key=lambda gpu: gpu.capability)
    like = [known[0], *(gpu for gpu in known if gpu.capability <= capability)][-1]
    by = units / like.units
    rates = (like.half * by, like.tf32 * by, like.l2 * by, like.memory * by)
    return Gpu(name, capability, units, shared, *rates)


class Config(NamedTuple):
    """One launch: tokens of a tile, inputs (or, for the weight gradient, tokens) multiplied at once, warps, stages."""

    tokens: int
    depth: int
    warps: int
    stages: int


class Key(NamedTuple):
    """What was measured: on which GPU, kind of layer ("linear", "conv2d", "masked"), block, precision and shape.

    bucket: batch x positions, rows and columns in halvings (see `bucket_of`).
    """

    gpu: str
    layout: str
    block: tuple[int, int]
    dtype: str
    bucket: tuple[int, int, int]


class Measured(NamedTuple):
    """The fastest launches, and the density up to which forward + backward beat the masked dense product."""

    forward: Config
    input_grad: Config
    weight_grad: Config
    break_even: float


# Nothing has been measured yet: docs/gpu.md says how to.
TABLE: dict[Key, Measured] = {}


def bucket_of(positions: int, rows: int, cols: int) -> tuple[int, int, int]:
    """Sizes that share an entry of the table: within a halving of each other."""
    return positions.bit_length(), rows.bit_length(), cols.bit_length()


def key_of(gpu: Gpu, layout: str, block: tuple[int, int], dtype: torch.dtype, problem: Problem) -> Key:
    """The key of a problem."""
    rows, cols = problem.shape[0], prod(problem.shape[1:])
    return Key(gpu.name, layout, block, str(dtype).removeprefix("torch."), bucket_of(problem.positions, rows, cols))


def has_kernel(block: tuple[int, int]) -> bool:
    """Whether blocks of this size have kernels."""
    return block[0] in SIZES and block[1] in SIZES


# ---- launches --------------------------------------------------------------------------------------------------------


def product_config(
    gpu: Gpu, outputs: int, width: int, together: int, dtype: torch.dtype, positions: int, exact: bool
) -> Config:
    """The launch of Y = X W^T with `outputs` columns of Y a program, by blocks that are `width` inputs wide.

    exact: float32 without the matrix unit, which holds tiles in registers.
    """
    size = dtype.itemsize
    tokens = 32 if positions <= 32 else 64 if exact else MOST_TOKENS
    depth = _depth(dtype, exact)
    if together > 1:
        depth = min(depth, width)
    return Config(tokens, depth, _warps(tokens * outputs, exact), _stages(gpu, (tokens + outputs) * depth * size))


def weight_grad_config(gpu: Gpu, outputs: int, width: int, dtype: torch.dtype, exact: bool) -> Config:
    """The launch of dW = dY^T X with `outputs` rows of W a program; tokens are multiplied `depth` at once."""
    depth, inputs = _depth(dtype, exact), max(width, STACKED)
    each = (inputs + outputs) * depth * dtype.itemsize
    return Config(depth, depth, _warps(inputs * outputs, exact), _stages(gpu, each))


def _depth(dtype: torch.dtype, exact: bool) -> int:
    """What is multiplied at once: a cache line of inputs, where registers need not hold it."""
    return 16 if exact else 128 // dtype.itemsize


def _warps(tile: int, exact: bool) -> int:
    return 8 if tile >= (64 * 128 if exact else 128 * 128) else 4


def _stages(gpu: Gpu, each: int) -> int:
    """As many tiles on their way as shared memory holds, at most 4."""
    return max(1, min(4, gpu.shared // each))


def parts(gpu: Gpu, programs: int, positions: int, depth: int) -> int:
    """Into how many ranges the weight gradient cuts the tokens: enough to keep every multiprocessor busy."""
    wanted = -(-2 * gpu.units // max(1, programs))
    return max(1, min(wanted, 32, positions // (8 * depth)))
