"""Whether the Triton kernels pay where no table says so: predicted by a model.

A product takes as long as the slowest of its arithmetic, what it reads through L2 and what it moves to and from memory.
"""

from __future__ import annotations

from math import prod

import torch

from spfde.kernels.gpu import GPUS, Gpu
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Prediction
from spfde.kernels.triton.config import has_kernel, token_tile
from spfde.sparse.kernel_index import Window
from spfde.sparse.tiles import STACKED

EFFICIENCY = 0.75  # of the dense product's rate, for programs with many outputs
NARROW = {16: 0.4, 32: 0.67}  # of that, for few outputs: the tokens' tile is read again for each of them
L2 = 0.75  # of its rate: puts the model where torch's own block-sparse product was measured on an A100
MANY = 16384  # tokens
LAUNCH = 4e-6  # seconds
SIZES_ONLY = "only blocks with sides of 16, 32, 64 or 128 have a sparse kernel there"
OLDEST = (8, 0)  # compute capability that the kernels are compiled for in tests
MARGIN = 1.2  # predicted gain that is asked for while nothing has been measured


def union(density: float, together: int) -> float:
    """Share of the columns in which at least one of so many rows stores a block, if they are independent."""
    return 1 - (1 - density) ** together


def together_of(height: int, width: int, density: float) -> int:
    """How many block rows share a program: those for which its slower limit, arithmetic or L2, is predicted least.

    Rows that share a program share its inputs, and multiply the zeros where only some of them store a block. Decided
    for an H200 in 16 bits: the plan of a layer must not change with its inputs.
    """
    choices = [1]
    while height * choices[-1] * 2 <= 128:
        choices.append(choices[-1] * 2)
    h200, kind = GPUS["NVIDIA H200"], torch.bfloat16
    cost = {
        n: _slower(h200, height, width, density, n, kind, token_tile(h200, height * n, kind, MANY)) for n in choices
    }
    best = min(choices, key=lambda count: cost[count])
    return best if cost[best] < 0.9 * cost[1] else 1


def _slower(gpu: Gpu, height: int, width: int, density: float, together: int, dtype: torch.dtype, tile: int) -> float:
    """Seconds (x 10^12) that one stored block takes for a token, were it alone: arithmetic or L2. tile: of tokens."""
    density = max(density, 1e-6)
    share = union(density, together) / (density * together)  # entries for each stored block
    rate = gpu.rate(dtype) * EFFICIENCY * NARROW.get(height * together, 1.0)
    arithmetic = 2 * height * width * together * share / rate
    return max(arithmetic, (share * width + height * width / tile) * dtype.itemsize / (gpu.l2 * L2))


def gain(problem: Problem, dtype: torch.dtype, gpu: Gpu) -> float:
    """Predicted time of the masked dense product's forward + backward over that of the kernels for blocks.

    float32 is taken at TF32's rate, where the dense product is strongest: a choice must not hang on a flag.
    """
    rows, cols = problem.shape[0], prod(problem.shape[1:])
    height, width = problem.block
    tokens, size = problem.positions, dtype.itemsize
    rate, stored = gpu.rate(dtype) * 1e12, problem.density * rows * cols
    window = problem.window
    channels = cols // prod(window.kernel) * window.groups
    read = channels * prod(window.stride)  # activations for each output pixel
    activations = tokens * (rows + read) * size / (gpu.memory * 1e12)
    full = max(2 * tokens * rows * cols / rate, activations) + rows * cols * size / (gpu.memory * 1e12) + LAUNCH
    op = "linear" if problem.window.linear else "conv2d"
    blocks = stored / (height * width) * tokens
    seconds = 0.0
    for outputs, inputs in ((height, width), (width, height)):
        together = together_of(outputs, inputs, problem.density)
        tile = token_tile(gpu, outputs * together, dtype, tokens, op)
        limit = blocks * _slower(gpu, outputs, inputs, problem.density, together, dtype, tile) * 1e-12
        seconds += max(limit, activations) + LAUNCH
    side = max(width, STACKED)
    read = (side + height) / (side * height) * tokens * stored * size
    arithmetic = 2 * tokens * stored / (rate * EFFICIENCY * NARROW.get(height, 1.0))
    seconds += max(arithmetic, read / (gpu.l2 * L2 * 1e12), activations) + LAUNCH
    return 3 * full / seconds


def hindrance(block: tuple[int, int], window: Window) -> str | None:
    """Why a layer has no sparse kernel on a GPU, or None."""
    if not has_kernel(block):
        return SIZES_ONLY
    return "no sparse kernel for groups there" if window.groups > 1 else None


def predict(problem: Problem, dtype: torch.dtype, gpu: Gpu) -> Prediction:
    """What the kernels gain on a GPU, by the model."""
    predicted = gain(problem, dtype, gpu)
    reason = f"predicted {predicted:.1f}x the masked dense product at density {problem.density:.2f}, not measured"
    return Prediction(predicted, predicted >= MARGIN, reason)
