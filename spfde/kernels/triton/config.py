"""What is known of GPUs, and how a kernel is launched on them where nothing was measured (see `tuned`).

Pure functions and constants; neither triton nor a GPU is needed.
"""

from __future__ import annotations

import torch

from spfde.kernels.gpu import Config, Gpu
from spfde.sparse.tiles import STACKED

SIZES = (16, 32, 64, 128)  # sides of blocks that have kernels
MOST_TOKENS = 256  # that a program of a product works on
TILE = 64  # side of the tiles in which the masked product leaves out zeros


def has_kernel(block: tuple[int, int]) -> bool:
    """Whether blocks of this size have kernels."""
    return block[0] in SIZES and block[1] in SIZES


# ---- launches --------------------------------------------------------------------------------------------------------


def product_config(
    gpu: Gpu,
    outputs: int,
    width: int,
    together: int,
    dtype: torch.dtype,
    positions: int,
    exact: bool,
    op: str = "linear",
) -> Config:
    """The launch of Y = X W^T with `outputs` columns of Y a program, by blocks that are `width` inputs wide.

    exact: float32 without the matrix unit, which holds tiles in registers. op: "linear" or "conv2d".
    """
    tokens = token_tile(gpu, outputs, dtype, positions, op)
    if exact:
        tokens = min(tokens, 32 if op == "conv2d" and outputs >= 128 else 64)
    depth = _depth(dtype, exact)
    if op == "conv2d" and outputs >= 64 and not gpu.multiplies_from_shared:
        depth = min(depth, 32)  # operands and addresses share the registers
    if together > 1:
        depth = min(depth, width)
    beside = width < depth  # several blocks: every lane has an address of its own
    held = tokens * outputs * (2 if op == "conv2d" and dtype == torch.float32 else 1)  # and where its pixels lie
    warps = _warps(held, beside or dtype == torch.float32)
    flight = _in_flight(gpu, (tokens + outputs) * depth * dtype.itemsize, warps)
    # What is loaded hangs on an entry loaded before it: each step of the one is two stages of Triton's pipeline.
    return Config(tokens, depth, warps, 2 * flight - 1)


def token_tile(gpu: Gpu, outputs: int, dtype: torch.dtype, positions: int, op: str = "linear") -> int:
    """Tokens of a program with so many outputs: the larger, the less is read through L2.

    A convolution holds where each of its pixels lies, and has registers for fewer.
    """
    if positions <= 32:
        return 32
    if op == "conv2d":
        return 64 if dtype == torch.float32 and outputs >= 128 else 128
    large = gpu.multiplies_from_shared and dtype != torch.float32 and outputs >= 64 and positions >= 4096
    return MOST_TOKENS if large else 128


def weight_grad_config(gpu: Gpu, outputs: int, width: int, dtype: torch.dtype, exact: bool) -> Config:
    """The launch of dW = dY^T X with `outputs` rows of W a program; tokens are multiplied `depth` at once."""
    depth, inputs = _depth(dtype, exact), max(width, STACKED)
    warps = _warps(inputs * outputs, dtype == torch.float32)
    return Config(depth, depth, warps, _in_flight(gpu, (inputs + outputs) * depth * dtype.itemsize, warps))


def _depth(dtype: torch.dtype, exact: bool) -> int:
    """What is multiplied at once: a cache line of inputs, where registers need not hold it."""
    return 16 if exact else 128 // dtype.itemsize


def _warps(tile: int, crowded: bool) -> int:
    """As many as hold the sums of a tile, and what else takes registers."""
    return 8 if tile >= (64 * 128 if crowded else 128 * 128) else 4


def _in_flight(gpu: Gpu, each: int, warps: int) -> int:
    """How many steps' operands, of so many bytes, are on their way or being multiplied: 2 to 4.

    Two programs of four warps share a multiprocessor. For "mma", operands leave shared memory for registers.
    """
    room = gpu.shared // (each * (2 if warps == 4 else 1)) + (not gpu.multiplies_from_shared)
    return max(2, min(4, room))


def parts(gpu: Gpu, programs: int, positions: int, depth: int) -> int:
    """Into how many ranges the weight gradient cuts the tokens: enough to keep every multiprocessor busy."""
    wanted = -(-2 * gpu.units // max(1, programs))
    return max(1, min(wanted, 32, positions // (8 * depth)))
