"""Launches worth timing: around the computed one, of those that a GPU can hold. No triton, no GPU."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import log2

import torch

from spfde.kernels.gpu import Config, Gpu
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Programs
from spfde.kernels.triton.config import has_kernel, product_config, weight_grad_config
from spfde.kernels.triton.index import tile_index
from spfde.kernels.triton.launch import exact
from spfde.sparse.plan import Plan
from spfde.sparse.tiles import STACKED

MOST = 12
SUMS = 256  # sums that a thread may hold x bytes of an operand: with more, some leave the registers
DEPTHS = (16, 32, 64, 128)


def launches_to_time(plan: Plan, problem: Problem, dtype: torch.dtype, gpu: Gpu) -> dict[str, Programs]:
    """What the tuner may choose among, by op; nothing for float32 that must not be rounded to TF32, or a dense walk."""
    op = "linear" if plan.window.linear else "conv2d"
    if exact(dtype, op) or not has_kernel(plan.block):
        return {}
    (height, width), index, positions = plan.block, tile_index(plan), problem.positions
    together, together_back = index.tiles.together, index.t_tiles.together
    outputs, back = height * together, width * together_back
    return {
        "forward": (outputs, product_candidates(gpu, outputs, width, together, dtype, positions, op)),
        "input_grad": (back, product_candidates(gpu, back, height, together_back, dtype, positions, op)),
        "weight_grad": (outputs, weight_grad_candidates(gpu, outputs, width, dtype)),
    }


def product_candidates(
    gpu: Gpu, outputs: int, width: int, together: int, dtype: torch.dtype, positions: int, op: str = "linear"
) -> list[Config]:
    """The launches of Y = X W^T to time, the computed one first; arguments as of `product_config`. float32 is TF32."""
    default = product_config(gpu, outputs, width, together, dtype, positions, False, op)
    deepest = width if together > 1 else max(DEPTHS)
    tokens = (32, 64) if positions <= 32 else (64, 128, 256)
    sums = SUMS // 2 if op == "conv2d" else SUMS  # it also holds where each of its pixels lies
    made = (
        Config(rows, depth, warps, 2 * flight - 1)
        for rows, depth, warps in product(tokens, DEPTHS, (4, 8))
        if (rows, depth, warps) == default[:3]
        or (depth <= deepest and _fills(gpu, rows, outputs, depth, warps, dtype, sums))
        for flight in _flights(gpu, (rows + outputs) * depth * dtype.itemsize)
    )
    return _nearest(default, made)


def weight_grad_candidates(gpu: Gpu, outputs: int, width: int, dtype: torch.dtype) -> list[Config]:
    """The launches of dW = dY^T X to time, the computed one first; arguments as of `weight_grad_config`."""
    default, inputs = weight_grad_config(gpu, outputs, width, dtype, exact=False), max(width, STACKED)
    made = (
        Config(depth, depth, warps, stages)
        for depth, warps in product(DEPTHS[1:], (4, 8))
        if (depth, depth, warps) == default[:3] or _fills(gpu, inputs, outputs, depth, warps, dtype)
        for stages in _flights(gpu, (inputs + outputs) * depth * dtype.itemsize)
    )
    return _nearest(default, made)


def _fills(
    gpu: Gpu, rows: int, outputs: int, depth: int, warps: int, dtype: torch.dtype, sums: int = SUMS
) -> bool:  # fmt: skip
    """Whether every warp has rows of the matrix unit to multiply, and room for sums beside its operands.

    Operands of "mma" take registers too: a cache line of each row, no more.
    """
    held, threads = rows * outputs * dtype.itemsize, 32 * warps
    roomy = gpu.multiplies_from_shared or (held < SUMS * threads and depth * dtype.itemsize <= 128)
    return 16 * warps <= max(rows, 64) and held <= sums * threads and roomy


def _flights(gpu: Gpu, each: int) -> list[int]:
    """Steps whose operands, of so many bytes, are on their way or being multiplied: as many as fit, and fewer."""
    most = min(4, gpu.shared // each + (not gpu.multiplies_from_shared))
    return list(range(most, 1, -1))


def _nearest(default: Config, made: Iterable[Config]) -> list[Config]:
    """The default, then those that differ least from it."""

    def distance(how: Config) -> float:
        return sum(abs(log2(new / old)) for new, old in zip(how, default, strict=True))

    return list(dict.fromkeys((default, *sorted(made, key=distance))))[:MOST]
