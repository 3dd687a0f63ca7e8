"""What a conv2d program works on: its tile and its lists of blocks. Pure functions, the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from spfde.pattern import Units, Window

PROGRAMS = 512  # programs that fill a large GPU about twice


class MultiplyTile(NamedTuple):
    """pixels x wide results, summed over deep channels at a time."""

    pixels: int
    wide: int
    deep: int
    warps: int
    stages: int


class ReduceTile(NamedTuple):
    """group blocks of deep x wide weights, summed over pixels at a time."""

    pixels: int
    group: int
    wide: int
    deep: int
    warps: int
    stages: int


def power(size: int, most: int) -> int:
    """The least power of two that holds `size`, within what an MMA takes: [16, most]."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def multiply_tile(depth: int, width: int, bytes_each: int) -> MultiplyTile:
    """For blocks of `depth` channels read x `width` written, of `bytes_each`."""
    wide, deep = power(width, 128), power(depth, 64 if bytes_each == 2 else 32)
    return MultiplyTile(128, wide, deep, 8 if wide == 128 else 4, 3)


def reduce_tile(height: int, width: int, bytes_each: int) -> ReduceTile:
    """For blocks of R = `height` outputs x C = `width` inputs."""
    wide, deep = power(height, 128), power(width, 128)
    return ReduceTile(64 if bytes_each == 2 else 32, 128 // deep, wide, deep, 8 if wide == 128 else 4, 3)


def splits_of(positions: int, programs: int, pixels: int) -> int:
    """Into how many parts the pixels are cut so that enough programs run, each with some work."""
    return max(1, min(-(-PROGRAMS // max(1, programs)), positions // (16 * pixels)))


def precision() -> str:
    """How float32 products are made: as torch's convolutions are told to."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def upcast() -> bool:
    """Whether operands become float32 first: Triton's interpreter knows no bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def with_transpose(units: Units, block: Sequence[int], shape: Sequence[int], window: Window) -> Units:
    """The units of blocks R x C, with lists of blocks by what they read, as the input gradient walks them.

    t_row = (channel block, row residue, column residue): taps that meet the same input pixels under the stride. t_col =
    block row * taps + tap. t_perm: the blocks in this order. Shapes depend on the capacity alone: no device is asked.
    """
    (height, width), taps = block, prod(window.kernel)
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
