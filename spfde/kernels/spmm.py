"""spmm: Y = X W^T + bias for a sparse weight, and with the transposed index its input gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde._native import native
from spfde.kernels import dispatch, sddmm
from spfde.kernels.clock import timed
from spfde.kernels.masked import scatter, to_dense
from spfde.kernels.precision import (
    compute_and_result_dtype,
    refuse_double_backward,
    through_dispatcher,
    without_autocast,
)
from spfde.pattern import Index, Plan, positions_of


def spmm_ref(x: Tensor, values: Tensor, row_ptr: Tensor, col: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = X W^T + bias in plain torch, differentiable to any order.

    x: [..., cols]. values: [capacity, 1, 1]. Returns [..., rows].
    """
    shape = (row_ptr.numel() - 1, x.shape[-1])
    return F.linear(x, to_dense(values, positions_of(Index(row_ptr, col), shape[1]), shape), bias)


def spmm(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None = None, kernel: str = "auto") -> Tensor:
    """Y = X W^T + bias for the sparse W of `plan`.

    x: [..., cols]. values: [capacity, 1, 1]. bias: [rows] or None. Returns [..., rows] in the precision that
    `spfde.kernels.precision` states.

    Raises:
        ValueError: x does not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    rows, cols = plan.shape
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"expected x of shape [..., {cols}], got {list(x.shape)}")
    dispatch.check_device(x, values)
    dtype, result = compute_and_result_dtype(x, values)
    with without_autocast(x.device.type):
        flat = x.reshape(-1, cols).to(dtype)
        values = values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if through_dispatcher(flat):
            y = torch.ops.spfde.spmm(
                flat, values, bias, plan.row_ptr, plan.col, plan.t_row_ptr, plan.t_col, plan.t_perm, kernel
            )
        else:
            choice = dispatch.linear(kernel, flat, rows, plan.nnz)
            if choice.kernel == "reference":
                y = F.linear(flat, to_dense(values, plan.positions, plan.shape), bias)
            else:
                y = _Spmm.apply(flat, values, bias, plan, choice.kernel)
    return y.to(result).view(*x.shape[:-1], rows)


@timed
def compute(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    row_ptr: Tensor,
    col: Tensor,
    kernel: str,
    buffer: Tensor | None = None,
) -> Tensor:
    """Y [batch, rows] outside autograd; `kernel` names one, "auto" is resolved before."""
    rows, cols, batch = row_ptr.numel() - 1, x.shape[1], x.shape[0]
    if kernel == "reference":
        return spmm_ref(x, values, row_ptr, col, bias)
    if kernel == "dense":
        return F.linear(x, scatter(values, row_ptr, col, (rows, cols), buffer), bias)
    x = x.contiguous()
    y = x.new_empty(batch, rows)
    native().spmm(
        rows, cols, batch, row_ptr.data_ptr(), col.data_ptr(), values.data_ptr(),
        0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


@timed
def _input_grad(dy: Tensor, values: Tensor, plan: Plan, kernel: str) -> Tensor:
    if kernel == "dense":
        return dy @ scatter(values, plan.row_ptr, plan.col, plan.shape, plan.dense_buffer())
    values = transposed(values, plan.t_perm)
    return compute(dy, values, None, plan.t_row_ptr, plan.t_col, kernel)


def transposed(values: Tensor, t_perm: Tensor) -> Tensor:
    """`values` in the transposed order, as the transposed index reads them."""
    return values.view(-1).index_select(0, t_perm).view_as(values)  # 1-D: four times faster than rows of one


class _Spmm(torch.autograd.Function):
    """The eager route: the same computations as the registered op, without the dispatcher's overhead."""

    @staticmethod
    def forward(ctx, x, values, bias, plan, kernel):
        ctx.save_for_backward(x if values.requires_grad else None, values)
        ctx.plan, ctx.kernel = plan, kernel
        buffer = plan.dense_buffer() if kernel == "dense" else None
        return compute(x, values, bias, plan.row_ptr, plan.col, kernel, buffer)

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        plan, kernel = ctx.plan, ctx.kernel
        need_x, need_values, need_bias = ctx.needs_input_grad[:3]
        dx = dvalues = dbias = None
        with torch.no_grad():
            if need_x:
                dx = _input_grad(dy, values, plan, kernel)
            if need_values:
                dvalues, dbias = sddmm.compute(dy, x, plan.row_ptr, plan.col, need_bias, kernel)
            elif need_bias:
                dbias = dy.sum(0)
        dx, dvalues, dbias = refuse_double_backward([dx, dvalues, dbias if need_bias else None])
        return dx, dvalues, dbias, None, None


@torch.library.custom_op("spfde::spmm", mutates_args=())
def _op(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    row_ptr: Tensor,
    col: Tensor,
    t_row_ptr: Tensor,
    t_col: Tensor,
    t_perm: Tensor,
    kernel: str,
) -> Tensor:
    choice = dispatch.linear(kernel, x, row_ptr.numel() - 1, dispatch.stored(row_ptr))
    return compute(x, values, bias, row_ptr, col, choice.kernel)


@_op.register_fake
def _fake(x, values, bias, row_ptr, col, t_row_ptr, t_col, t_perm, kernel):
    return x.new_empty(x.shape[0], row_ptr.shape[0] - 1)


def _setup_context(ctx, inputs, output):
    x, values, _, *index, kernel = inputs
    ctx.save_for_backward(x, values, *index)
    ctx.kernel = kernel


def _backward(ctx, dy):
    x, values, row_ptr, col, t_row_ptr, t_col, t_perm = ctx.saved_tensors
    need_x, need_values, need_bias = ctx.needs_input_grad[:3]
    dx = dvalues = dbias = None
    if need_x:
        t_values = transposed(values.detach(), t_perm)
        dx = torch.ops.spfde.spmm(dy.detach(), t_values, None, t_row_ptr, t_col, row_ptr, col, t_perm, ctx.kernel)
    if need_values or need_bias:
        dvalues, dbias = torch.ops.spfde.sddmm(dy.detach(), x.detach(), row_ptr, col, need_bias, ctx.kernel)
    dx, dvalues, dbias = refuse_double_backward([dx, dvalues if need_values else None, dbias if need_bias else None])
    return dx, dvalues, dbias, None, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.spfde.spmm)
def _flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * values_shape[0]
