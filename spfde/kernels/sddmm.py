"""sddmm: dW = dY^T X at the stored positions only, with the bias gradient in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde._native import native
from spfde.kernels.clock import timed
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.scatter import gather
from spfde.kernels.tiled import unpacked
from spfde.kernels.triton.config import has_kernel
from spfde.sparse.plan import Units, places_of


def sddmm_ref(dy: Tensor, x: Tensor, units: Units, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(dY^T X at the stored places, column sums of dY) in plain torch.

    dy: [batch, rows]. x: [batch, cols]. block: R and C. Returns [-1, R, C] with 0 where nothing is stored, and [rows].
    """
    sums = F.pad((dy.t() @ x).reshape(-1), (0, 1))
    places = places_of(units, (dy.shape[1], x.shape[1]))
    return sums[places.long()].view(-1, *block), dy.sum(0)


@timed
def compute(
    dy: Tensor, x: Tensor, units: Units, block: Sequence[int], bias: bool, kernel: str
) -> tuple[Tensor, Tensor]:
    """The weight gradient [-1, R, C] and, if `bias`, the bias gradient [rows] (else empty).

    block: R and C of the values, as `Plan.arrange` gives them. `kernel` names one, "auto" is resolved before.
    """
    if kernel == "reference":
        dvalues, dbias = sddmm_ref(dy, x, units, block)
        return dvalues, dbias if bias else dy.new_empty(0)
    if kernel == "triton" and has_kernel(tuple(block)):
        from spfde.kernels.triton import sddmm  # triton is imported when a kernel of its runs

        return sddmm.weight_grad(dy, x, units, block, bias)
    if kernel in ("dense", "triton"):
        return gather(dy.t() @ x, units, block), dy.sum(0) if bias else dy.new_empty(0)
    dy, x = dy.contiguous(), x.contiguous()
    (batch, rows), cols = dy.shape, x.shape[1]
    dvalues, dbias = x.new_empty(slots(units, block), *block), x.new_empty(rows if bias else 0)
    args = (
        dvalues.shape[0], units.row_ptr.data_ptr(), units.col.data_ptr(), dy.data_ptr(), x.data_ptr(),
        dvalues.data_ptr(), dbias.data_ptr() if bias else 0, torch.get_num_threads(),
    )  # fmt: skip
    if block[0] == 1:
        native().sddmm(rows, cols, batch, *args)
    else:
        native().sddmm_blocks(rows, cols, batch, *block, *args)
    return dvalues, dbias


def slots(units: Units, block: Sequence[int]) -> int:
    """How many blocks the values of a kernel have room for."""
    return units.col.shape[0] // block[1]


def multiplied(units_shapes: Sequence[Sequence[int]], block: Sequence[int]) -> int:
    """How many weights there is room for, by the shapes of `Units`."""
    return units_shapes[1][0] * block[0]


@torch.library.custom_op("spfde::sddmm", mutates_args=())
def _op(
    dy: Tensor, x: Tensor, units: Sequence[Tensor], block: Sequence[int], bias: bool, kernel: str
) -> tuple[Tensor, Tensor]:
    index = unpacked(units)
    choice = dispatch.linear(kernel, x, dy.shape[1], *dispatch.stored(index, block))
    return compute(dy, x, index, block, bias, choice.kernel)


@_op.register_fake
def _fake(dy, x, units, block, bias, kernel):
    return x.new_empty(slots(unpacked(units), block), *block), x.new_empty(dy.shape[1] if bias else 0)


@register_flop_formula(torch.ops.spfde.sddmm)
def _flops(dy_shape, x_shape, units_shapes, block, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * multiplied(units_shapes, block)
