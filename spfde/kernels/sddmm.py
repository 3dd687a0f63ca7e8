"""sddmm: dW = dY^T X at the stored positions only, with the bias gradient in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde._native import native
from spfde.kernels import dispatch
from spfde.kernels.clock import timed
from spfde.kernels.dispatch import stored
from spfde.kernels.masked import gather
from spfde.pattern import Index, positions_of


def sddmm_ref(dy: Tensor, x: Tensor, row_ptr: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """(dY^T X at the stored positions, column sums of dY) in plain torch.

    dy: [batch, rows]. x: [batch, cols]. Returns [capacity, 1, 1] with 0 in dead slots, and [rows].
    """
    positions = positions_of(Index(row_ptr, col), x.shape[1])
    sums = (dy.t() @ x).reshape(-1)[positions]
    dead = x.new_zeros(col.numel() - positions.numel())
    return torch.cat([sums, dead]).view(-1, 1, 1), dy.sum(0)


@timed
def compute(dy: Tensor, x: Tensor, row_ptr: Tensor, col: Tensor, bias: bool, kernel: str) -> tuple[Tensor, Tensor]:
    """The weight gradient [capacity, 1, 1] and, if `bias`, the bias gradient [rows] (else empty).

    `kernel` names one, "auto" is resolved before.
    """
    rows, cols, batch, capacity = dy.shape[1], x.shape[1], x.shape[0], col.numel()
    if kernel == "reference":
        dvalues, dbias = sddmm_ref(dy, x, row_ptr, col)
        return dvalues, dbias if bias else dy.new_empty(0)
    if kernel == "dense":
        return gather(dy.t() @ x, row_ptr, col, capacity), dy.sum(0) if bias else dy.new_empty(0)
    dy, x = dy.contiguous(), x.contiguous()
    dvalues, dbias = x.new_empty(capacity, 1, 1), x.new_empty(rows if bias else 0)
    native().sddmm(
        rows, cols, batch, capacity, row_ptr.data_ptr(), col.data_ptr(), dy.data_ptr(), x.data_ptr(),
        dvalues.data_ptr(), dbias.data_ptr() if bias else 0, torch.get_num_threads(),
    )  # fmt: skip
    return dvalues, dbias


@torch.library.custom_op("spfde::sddmm", mutates_args=())
def _op(dy: Tensor, x: Tensor, row_ptr: Tensor, col: Tensor, bias: bool, kernel: str) -> tuple[Tensor, Tensor]:
    choice = dispatch.linear(kernel, x, dy.shape[1], stored(row_ptr))
    return compute(dy, x, row_ptr, col, bias, choice.kernel)


@_op.register_fake
def _fake(dy, x, row_ptr, col, bias, kernel):
    return x.new_empty(col.shape[0], 1, 1), x.new_empty(dy.shape[1] if bias else 0)


@register_flop_formula(torch.ops.spfde.sddmm)
def _flops(dy_shape, x_shape, row_ptr_shape, col_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * col_shape[0]
