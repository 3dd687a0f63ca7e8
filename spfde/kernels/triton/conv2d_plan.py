"""What conv2d's kernels are told: their launch, their precision, and lists of blocks. No triton is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from spfde.kernels.triton import config
from spfde.kernels.triton.config import Config, Gpu
from spfde.pattern import Units, Window


def product_config(gpu: Gpu, outer: int, inner: int, dtype: torch.dtype, positions: int, exact: bool) -> Config:
    """The launch of the forward product, or of the input gradient, by blocks that read `inner` channels."""
    how = config.product_config(gpu, outer, inner, 1, dtype, positions, exact)
    return how._replace(depth=min(how.depth, inner))


def exact(dtype: torch.dtype) -> bool:
    """Whether products must not round their operands: float32 that torch's flags for convolutions keep from TF32."""
    flags = torch.backends.cudnn
    newer = getattr(getattr(flags, "conv", None), "fp32_precision", None)  # torch >= 2.9; the older flag may raise
    return dtype == torch.float32 and not (flags.allow_tf32 if newer is None else newer == "tf32")


def with_transpose(units: Units, block: Sequence[int], shape: Sequence[int], window: Window) -> Units:
    """The units of blocks R x C, with lists of blocks by what they read, as the input gradient walks them.

    t_row = (channel block, row residue, column residue): taps that meet the same input pixels under the stride. t_col =
    block row * taps + tap. t_perm: the blocks in this order. Shapes depend on the capacity alone: no device is asked.
    """
    width, taps = block[1], prod(window.kernel)
    block_rows, capacity = units.row_ptr.numel() - 1, units.col.numel() // width
    slot = torch.arange(capacity, device=units.col.device)
    row = torch.searchsorted(units.row_ptr[1:], slot.to(torch.int32) * width, right=True)  # dead slots: past the last
    first = units.col[::width].long()
    channel_block, tap = first // (taps * width), first % taps
    phase_h = tap // window.kernel[1] * window.dilation[0] % window.stride[0]
    phase_w = tap % window.kernel[1] * window.dilation[1] % window.stride[1]
    t_row = (channel_block * window.stride[0] + phase_h) * window.stride[1] + phase_w
    t_rows, t_cols = -(-shape[1] // width) * prod(window.stride), block_rows * taps
    key = torch.where(row < block_rows, t_row * t_cols + row * taps + tap, t_rows * t_cols)
    key, order = torch.sort(key)
    ends = torch.searchsorted(key, torch.arange(t_rows + 1, device=key.device) * t_cols)
    t_col = key % max(1, t_cols)
    return units._replace(t_row_ptr=ends.int(), t_col=t_col.int(), t_perm=order.int())
