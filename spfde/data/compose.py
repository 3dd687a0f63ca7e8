"""How one image of the "digits" task is made: a placed scan, clutter, contrast, noise.

Everything here is a pure function of its arguments. Lengths are output pixels, angles are radians,
intensities are in [0, 1]; B is the number of images and K the fragments per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32  # an image is SIZE x SIZE
SCAN = 8  # a scan is SCAN x SCAN
FRAGMENT = 4  # a fragment is a quarter of a scan: a stroke, never a readable digit
FRAGMENTS = 4  # at most this many per image


@dataclass(frozen=True)
class Pose:
    """Where sources land: width, angle, shear, and centre (x, y) from the image's centre; all [M]."""

    side: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Draw:
    """Every random choice behind B images."""

    scan: np.ndarray  # int [B], which scan is the digit
    pose: Pose  # [B]
    piece: np.ndarray  # int [B, K], which scan a fragment is cut from
    corner: np.ndarray  # int [B, K, 2], where (row, column)
    piece_pose: Pose  # [B * K]
    ink: np.ndarray  # float32 [B, K], strength of a fragment; 0 is no fragment
    paper: np.ndarray  # float32 [B], brightness of the background
    contrast: np.ndarray  # float32 [B], brightness of full ink above the background
    noise: np.ndarray  # float32 [B, SIZE, SIZE], in units of brightness


def draw(random: np.random.Generator, count: int, scans: np.ndarray, pool: np.ndarray) -> Draw:
    """Draw `count` images: digits from the scan numbers `scans` [S], clutter from those in `pool` [P]."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (count, *shape)).astype(np.float32)

    scan = random.choice(scans, count)
    side = uniform(14, 26)
    room = (SIZE - side) / 2  # keeps the upright box of the scan inside the image
    pose = Pose(side, uniform(-0.4, 0.4), uniform(-0.25, 0.25), room * uniform(-1, 1), room * uniform(-1, 1))

    # A fragment never comes from the digit's own scan: where the two meet, take the next one of the pool.
    place = random.integers(0, len(pool), (count, FRAGMENTS))
    piece = np.where(pool[place] == scan[:, None], pool[(place + 1) % len(pool)], pool[place])
    piece_pose = Pose(
        (side[:, None] * (FRAGMENT / SCAN) * uniform(0.8, 1.25, FRAGMENTS)).ravel(),
        uniform(-np.pi, np.pi, FRAGMENTS).ravel(),
        np.zeros(count * FRAGMENTS, np.float32),
        uniform(-SIZE / 2, SIZE / 2, FRAGMENTS).ravel(),
        uniform(-SIZE / 2, SIZE / 2, FRAGMENTS).ravel(),
    )
    present = random.random((count, FRAGMENTS)) < 0.8
    contrast = uniform(0.4, 0.9)
    noise = random.standard_normal((count, SIZE, SIZE), dtype=np.float32)
    return Draw(
        scan=scan,
        pose=pose,
        piece=piece,
        corner=random.integers(0, SCAN - FRAGMENT + 1, (count, FRAGMENTS, 2)),
        piece_pose=piece_pose,
        ink=uniform(0.3, 0.8, FRAGMENTS) * present,
        paper=uniform(0.0, 0.3),
        contrast=contrast,
        noise=noise * (contrast * uniform(0.06, 0.2))[:, None, None],
    )


def place(sources: Tensor, pose: Pose) -> Tensor:
    """Resample `sources` [M, h, h] bilinearly onto images [M, SIZE, SIZE], 0 outside the source."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    # source = (2 / side) * Shear * Rotate^-1 * (pixel - centre), in grid_sample's [-1, 1] coordinates
    rows = np.stack([cos - pose.shear * sin, sin + pose.shear * cos, -sin, cos]) * (2 / pose.side)
    across, down = axis - pose.x[:, None], axis - pose.y[:, None]
    grid = torch.empty(len(sources), SIZE, SIZE, 2)
    for k in range(2):
        along = torch.from_numpy(rows[2 * k, :, None] * across)[:, None, :]
        torch.add(along, torch.from_numpy(rows[2 * k + 1, :, None] * down)[:, :, None], out=grid[..., k])
    return F.grid_sample(sources[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


def cut(scans: Tensor, piece: np.ndarray, corner: np.ndarray) -> Tensor:
    """Cut FRAGMENT x FRAGMENT windows out of `scans` [S, SCAN, SCAN]: [B * K, FRAGMENT, FRAGMENT]."""
    windows = scans.unfold(1, FRAGMENT, 1).unfold(2, FRAGMENT, 1)
    return windows[piece.ravel(), corner[..., 0].ravel(), corner[..., 1].ravel()]


def compose(scans: Tensor, drawn: Draw) -> Tensor:
    """Render a draw from `scans`, float32 [S, SCAN, SCAN] in [0, 1]: images uint8 [B, 1, SIZE, SIZE]."""
    count = len(drawn.scan)
    digit = place(scans[drawn.scan], drawn.pose)
    clutter = place(cut(scans, drawn.piece, drawn.corner), drawn.piece_pose)
    clutter = clutter.view(count, FRAGMENTS, SIZE, SIZE) * torch.from_numpy(drawn.ink)[..., None, None]
    # The slope gives strokes an edge; resampling 8 pixels to 20 leaves a blur.
    ink = torch.maximum(digit, clutter.amax(1)).mul_(1.6).sub_(0.25).clamp_(0, 1)
    paper, contrast = (torch.from_numpy(v)[:, None, None] for v in (drawn.paper, drawn.contrast))
    image = paper + contrast * (1 - paper) * ink + torch.from_numpy(drawn.noise)
    # Whole grey levels, as a scanner gives them: differences in the last bit between machines mostly vanish.
    return image.clamp_(0, 1).mul_(255).round_().to(torch.uint8)[:, None]
