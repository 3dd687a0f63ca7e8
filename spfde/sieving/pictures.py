"""Images of samples as small pictures: arrays in [0, 1], and PNG without an imaging library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

LONGEST = 96  # pixels of a side


def picture(image: Any) -> np.ndarray:
    """`image` [channels, height, width], [height, width, channels] or [height, width] as one that can be drawn.

    Returns:
        float32 [height, width] or [height, width, 3] in [0, 1], darkest 0 and brightest 1: it may be normalised.

    Raises:
        ValueError: it is no image of 1 or 3 channels.
    """
    drawn = np.asarray(image, np.float32)
    if drawn.ndim == 3 and drawn.shape[0] in (1, 3):
        drawn = drawn.transpose(1, 2, 0)
    if drawn.ndim not in (2, 3) or (drawn.ndim == 3 and drawn.shape[2] not in (1, 3)):
        raise ValueError(
            f"expected images [channels, height, width] of 1 or 3 channels, got {list(drawn.shape)}; "
            "try the raw data set"
        )
    low, high = float(drawn.min()), float(drawn.max())
    scaled = (drawn - low) / ((high - low) or 1.0)
    return scaled[..., 0] if scaled.ndim == 3 and scaled.shape[2] == 1 else scaled


def thumbnail(drawn: np.ndarray) -> np.ndarray:
    """A `picture` whose sides are at most LONGEST pixels: means of square patches."""
    height, width = drawn.shape[:2]
    by = -(-max(height, width) // LONGEST)
    high, wide = max(1, height // by), max(1, width // by)
    patches = drawn[: high * by, : wide * by]
    return patches.reshape(high, -1, wide, patches.shape[1] // wide, *drawn.shape[2:]).mean((1, 3))


def png(drawn: np.ndarray) -> bytes:
    """A `picture` as a PNG file of 8 bits a channel."""
    pixels = (drawn * 255).round().astype(np.uint8)
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 for each
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
