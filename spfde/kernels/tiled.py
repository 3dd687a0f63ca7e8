"""What the Triton kernels read beside the units of an index: the tiles of a weight, once in each direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.triton import why_not
from spfde.kernels.triton.config import TILE, has_kernel
from spfde.kernels.triton.conv2d_plan import with_transpose
from spfde.kernels.triton.model import together_of
from spfde.pattern import Plan, Units, Window
from spfde.tiles import Tiles, build_tiles, stack_of


class TiledUnits(NamedTuple):
    """`Units`, then the fields of `Tiles` for the forward product and for the input gradient."""

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


def units_for(plan: Plan, kernel: str) -> Units | TiledUnits:
    """The index of a plan as a kernel reads it; tiles are built when one that needs them is first asked for.

    kernel: a name, or what settles it later ("auto" or a table's name).
    """
    may = kernel not in ("native", "dense", "reference") and plan.index.col.is_cuda and has_kernel(plan.block)
    if kernel != "triton" and not (may and why_not("cuda") is None):
        return plan.units
    if plan.tiles is None:
        with torch.inference_mode(False):  # they outlive the mode they are first asked for in
            plan.tiles = tiles_of(plan)
    return TiledUnits(*plan.units, *plan.tiles[0], *plan.tiles[1])


def conv_units_for(plan: Plan, window: Window, kernel: str) -> Units | TiledUnits:
    """The same for a convolution. kernel: the one that runs."""
    if kernel == "triton" and not plan.units.t_row_ptr.numel():
        with torch.inference_mode(False):
            plan.units = with_transpose(plan.units, plan.block, plan.shape, window)
    return units_for(plan, kernel) if window.linear else plan.units


def unpacked(tensors: Sequence[Tensor]) -> Units | TiledUnits:
    """The index from the list that a registered op is given."""
    return Units(*tensors) if len(tensors) == len(Units._fields) else TiledUnits(*tensors)


def tiles_of(plan: Plan) -> tuple[Tiles, Tiles]:
    """The tiles of W and of W transposed, for a linear layer.

    Blocks that have kernels are walked as they are stored. Any other weight is walked dense, in tiles of 64x64 of which
    those without a stored weight are left out; slots then mean nothing.
    """
    if not has_kernel(plan.block):
        return _occupied(plan)
    (height, width), (rows, cols) = plan.block, plan.grid.shape
    capacity = plan.values_shape[0]
    slot = torch.arange(capacity, device=plan.index.col.device)
    position = F.pad(plan.positions, (0, capacity - plan.nnz))
    row, col, live = position // cols, position % cols, slot < plan.nnz
    density = capacity / plan.grid.size
    return (
        build_tiles(row, col, slot, live, (rows, cols), together_of(height, width, density), stack_of(width)),
        build_tiles(col, row, slot, live, (cols, rows), together_of(width, height, density), stack_of(height)),
    )


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
