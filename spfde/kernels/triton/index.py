"""What kernels for blocks read beside the index of a plan, Triton's and CUDA C++'s: the tiles of W and of W^T."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.triton.config import TILE, has_kernel
from spfde.kernels.triton.model import together_of
from spfde.sparse.kernel_index import Window
from spfde.sparse.pattern import Grid
from spfde.sparse.plan import Plan
from spfde.sparse.tiles import Tiles, build_tiles, stack_of


class TileIndex(NamedTuple):
    """`KernelIndex`, then the fields of `Tiles` for the forward product and for the input gradient."""

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    places: Tensor
    entry: Tensor
    work: Tensor
    split: Tensor
    t_entry: Tensor
    t_work: Tensor
    t_split: Tensor

    @property
    def tiles(self) -> Tiles:
        """Those of W."""
        return Tiles(self.entry, self.work, self.split)

    @property
    def t_tiles(self) -> Tiles:
        """Those of W transposed."""
        return Tiles(self.t_entry, self.t_work, self.t_split)


def tile_index(plan: Plan) -> TileIndex:
    """The index of a plan with its tiles, which are built when they are first asked for."""
    first, second = plan.derive("tiles", tiles_of)
    return TileIndex(*plan.kernel_index, *first, *second)


def tiles_of(plan: Plan) -> tuple[Tiles, Tiles]:
    """The tiles of W, and of W transposed.

    Blocks that have kernels are walked as they are stored. Any other weight, of a linear layer, is walked dense, in
    tiles of 64x64 of which those without a stored weight are left out; slots then mean nothing.

    The rows of a convolution's transposed tiles are channel blocks by stride residue and group of the convolution, in
    whole groups of tiles; columns are output block x taps + tap. Groups of tiles are not cut there: a convolution has
    pixels enough to fill a GPU, and sums of parts would need room for as many.
    """
    if not has_kernel(plan.block):
        return _occupied(plan)
    (height, width), (rows, cols) = plan.block, plan.grid.shape
    capacity = plan.values_shape[0]
    slot = torch.arange(capacity, device=plan.index.col.device)
    position = F.pad(plan.positions, (0, capacity - plan.nnz))
    row, col, live = position // cols, position % cols, slot < plan.nnz
    density, cut = capacity / max(1, plan.grid.size), plan.window.linear
    beside, of_group = together_of(height, width, density), rows // plan.window.groups
    while plan.window.groups > 1 and of_group % beside:  # a group of tiles is of one group of the convolution
        beside //= 2
    forward = (rows, cols), beside, stack_of(width)
    together, stack = together_of(width, height, density), stack_of(height)
    t_row, t_col, t_shape = col, row, (cols, rows)
    if not plan.window.linear:
        t_row, t_col, t_shape = _by_residue(row, col, plan.grid, plan.window, together)
    return (
        build_tiles(row, col, slot, live, *forward, cut),
        build_tiles(t_row, t_col, slot, live, t_shape, together, stack, cut),
    )


def _by_residue(
    row: Tensor, col: Tensor, grid: Grid, window: Window, together: int
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Rows, columns and shape of a convolution's transpose."""
    (rows, cols), taps = grid.shape, grid.taps
    channel, tap = col // taps, col % taps
    phase_h = tap // window.kernel[1] * window.dilation[0] % window.stride[0]
    phase_w = tap % window.kernel[1] * window.dilation[1] % window.stride[1]
    channels = -(-(cols // taps) // together) * together  # a group of tiles is of one residue and one of the groups
    part = (phase_h * window.stride[1] + phase_w) * window.groups + row // max(1, rows // window.groups)
    return part * channels + channel, row * taps + tap, (prod(window.stride) * window.groups * channels, rows * taps)


def _occupied(plan: Plan) -> tuple[Tiles, Tiles]:
    rows, cols = -(-plan.rows // TILE), -(-plan.cols // TILE)
    places, size, count = plan.places, plan.rows * plan.cols, rows * cols
    tile = places // max(1, plan.cols) // TILE * cols + places % max(1, plan.cols) // TILE
    occupied = torch.zeros(count + 1, dtype=torch.bool, device=places.device)
    occupied[torch.where(places < size, tile, count)] = True
    slot = torch.arange(count, device=places.device)
    row, col = slot // max(1, cols), slot % max(1, cols)
    live = occupied[:count]
    return (
        build_tiles(row, col, slot, live, (rows, cols), 1, stack_of(TILE)),
        build_tiles(col, row, slot, live, (cols, rows), 1, stack_of(TILE)),
    )
