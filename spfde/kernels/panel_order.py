"""What the native kernels read beside the index of a plan: the order in which they visit its weights.

That is for linear layers, and for pointwise convolutions, which are linear layers over pixels. See
csrc/include/spfde/panel_order.h. An order takes 6 bytes for each weight there is room for and 4 for each row and panel;
its shape depends on these alone, so that a topology change writes it over in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spfde._native import native
from spfde.sparse.plan import Plan


class Order(NamedTuple):
    """The fields of `PanelOrder`, of an index of weights or units."""

    start: Tensor
    visits: Tensor
    offset: Tensor
    slot: Tensor


class NativeIndex(NamedTuple):
    """`KernelIndex`, then the order of W and (for single weights, else empty) that of W transposed."""

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    places: Tensor
    start: Tensor
    visits: Tensor
    offset: Tensor
    slot: Tensor
    t_start: Tensor
    t_visits: Tensor
    t_offset: Tensor
    t_slot: Tensor


def native_index(plan: Plan) -> NativeIndex:
    """The index of such a plan as the native kernels read it; its orders are made when first asked for."""
    first, second = plan.derive("native", orders_of)
    return NativeIndex(*plan.kernel_index, *first, *second)


def orders_of(plan: Plan) -> tuple[Order, Order]:
    """The order of W, and of W transposed."""
    index, (rows, cols) = plan.kernel_index, plan.shape[:2]
    height = plan.block[0]
    col, perm = index.col, None
    if height > 1 and plan.grid.order is not None:
        col, perm = _ascending(index.row_ptr, col, cols)
    first = _order(-(-rows // height), cols, height, index.row_ptr, col, perm)
    if height > 1:
        empty = index.col.new_empty(0)
        return first, Order(empty, empty, empty, empty)
    return first, _order(cols, rows, 1, index.t_row_ptr, index.t_col, index.t_perm)


def _ascending(row_ptr: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor]:
    """The columns of units in any order, ascending within each row, and which unit each is of."""
    live = int(row_ptr[-1])
    row = torch.repeat_interleave(torch.arange(len(row_ptr) - 1), row_ptr.diff(), output_size=live)
    perm = torch.arange(len(col), dtype=torch.int32)
    perm[:live] = torch.sort(row * cols + col[:live], stable=True).indices
    return col[perm], perm


def _order(rows: int, cols: int, height: int, row_ptr: Tensor, col: Tensor, perm: Tensor | None) -> Order:
    room = col.numel()
    shares, panels = native().panel_cut(rows, cols, room, height)
    order = Order(
        col.new_zeros(shares * panels + 1),
        col.new_zeros(panels * rows),
        col.new_zeros(room, dtype=torch.int16),
        col.new_zeros(room),
    )
    native().panel_order(
        rows, cols, room, height, row_ptr.data_ptr(), col.data_ptr(), 0 if perm is None else perm.data_ptr(),
        *(part.data_ptr() for part in order), torch.get_num_threads(),
    )  # fmt: skip
    return order
