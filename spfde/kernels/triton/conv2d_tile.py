"""The tile a conv2d program works on: pure functions of the block and the precision, the same on every machine."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

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
