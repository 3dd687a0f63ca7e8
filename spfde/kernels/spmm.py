"""spmm: Y = X W^T + bias for a sparse weight, and with the transposed index its input gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde._native import native
from spfde.kernels import channel as whole
from spfde.kernels import sddmm
from spfde.kernels.clock import timed
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.dtypes import (
    cast,
    compute_and_result_dtype,
    packed,
    refuse_double_backward,
    through_dispatcher,
    without_autocast,
    without_graph,
)
from spfde.kernels.epilogue import Epilogue, act_grad, untracked
from spfde.kernels.memory_format import address, check_parameters
from spfde.kernels.scatter import dense_weight, needs_dense, scatter, to_dense, write
from spfde.kernels.tiled import units_for, unpacked
from spfde.sparse.plan import Plan, Units


def spmm_ref(x: Tensor, values: Tensor, units: Units, rows: int, bias: Tensor | None = None) -> Tensor:
    """Y = X W^T + bias in plain torch, differentiable to any order.

    x: [..., cols]. values: as `Plan.arrange` gives them. Returns [..., rows].
    """
    return F.linear(x, to_dense(values, units, (rows, x.shape[-1])), bias)


def spmm(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None = None, kernel: str = "auto") -> Tensor:
    """Y = X W^T + bias for the sparse W of `plan`.

    x: [..., cols]. values: [capacity, R, C]. bias: [rows] or None. Returns [..., rows] in the precision that
    `spfde.kernels.dtypes` states.

    Raises:
        ValueError: x, values or bias do not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    rows, cols = plan.shape
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"expected x of shape [..., {cols}], got {list(x.shape)}")
    dispatch.check_device(x, values)
    dtype, result = compute_and_result_dtype(x, values)
    with without_autocast(x.device.type):
        flat = cast(x if x.dim() == 2 else x.reshape(-1, cols), dtype)
        check_parameters(values, plan.values_shape, bias, rows)
        values, bias = packed(values, dtype), packed(bias, dtype)
        if whole.applies(plan, kernel, dtype):
            y = whole.compute(lambda weight: F.linear(flat, weight), values, plan, bias)
        elif through_dispatcher(flat):
            y = torch.ops.spfde.spmm(flat, plan.arrange(values), bias, list(units_for(plan, kernel)), rows, kernel)
        else:
            choice = dispatch.linear(kernel, flat, rows, plan.multiplied, plan.block)
            values = plan.arrange(values)
            if choice.kernel == "reference":
                y = F.linear(flat, dense_weight(values, plan), bias)
            else:
                y = _Spmm.apply(flat, values, bias, None, plan, choice.kernel, "none", False)
    y = cast(y, result)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], rows)


def fused(
    x: Tensor, values: Tensor, plan: Plan, epilogue: Callable[[], Epilogue], kernel: str = "auto"
) -> Tensor | None:
    """Y = epilogue(X W^T) in one Triton kernel; None where another runs, something misfits, or it has no gradient.

    Arguments as in `spmm`; epilogue: made only where Triton runs, its residual [..., rows].
    """
    rows, cols = plan.shape
    if x.dim() == 0 or x.shape[-1] != cols or x.device != values.device or values.shape != plan.values_shape:
        return None
    dtype, result = compute_and_result_dtype(x, values)
    batch, device = prod(x.shape[:-1]), x.device.type
    if dispatch.choose_linear(kernel, device, dtype, batch, plan.shape, plan.multiplied, plan.block).kernel != "triton":
        return None
    flat, end = cast(x if x.dim() == 2 else x.reshape(-1, cols), dtype), epilogue()
    if not end.fits((*x.shape[:-1], rows), rows, result, x.device):
        return None
    values, result, end = packed(values, dtype), end.result(result), end.in_precision(dtype)
    if untracked(x, values, *end.tensors):
        rest = end.residual
        y = compute_fused(flat, values, end._replace(residual=rest if rest is None else rest.reshape(-1, rows)), plan)
    elif end.has_gradient:
        bias, weights = packed(end.bias, dtype), plan.arrange(values)
        y = _Spmm.apply(flat, weights, bias, end.residual, plan, "triton", end.act, end.after)
    else:
        return None
    y = cast(y, result)
    return y if y.dim() == x.dim() else y.view(*x.shape[:-1], rows)


@timed
def compute_fused(x: Tensor, values: Tensor, epilogue: Epilogue, plan: Plan) -> Tensor:
    """Y [batch, rows] by Triton."""
    values = plan.arrange(values)
    weights = write(values, plan)[0] if needs_dense("triton", values) else values
    return _triton().forward(x, weights, epilogue, units_for(plan, "triton"), plan.rows)


@timed
def compute(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    units: Units,
    rows: int,
    kernel: str,
    weight: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Y [batch, rows] outside autograd; `kernel` names one, "auto" is resolved before.

    weight: the dense one, if made. epilogue: what Triton's kernel ends with, the bias in it.
    """
    if kernel == "native":
        return _product(x, values, None, bias, units.row_ptr, units.col, rows)
    if kernel == "reference":
        return spmm_ref(x, values, units, rows, bias)
    if weight is None and needs_dense(kernel, values):
        weight = scatter(values, units, (rows, x.shape[1]))
    if kernel == "triton":
        return _triton().forward(x, values if weight is None else weight, epilogue or Epilogue(bias), units, rows)
    return F.linear(x, weight, bias)


@timed
def compute_input_grad(
    dy: Tensor, values: Tensor, units: Units, cols: int, kernel: str, weight: Tensor | None = None
) -> Tensor:
    """DX [batch, cols] outside autograd. weight: the dense one, if made."""
    if weight is None and needs_dense(kernel, values):
        weight = scatter(values, units, (dy.shape[1], cols))
    if kernel == "triton":
        return _triton().input_grad(dy, values if weight is None else weight, units, cols)
    if kernel != "native":
        return dy @ weight
    height, width = values.shape[1:]
    if height == 1:
        return _product(dy, values, units.t_perm, None, units.t_row_ptr, units.t_col, cols)
    dy, (batch, rows) = dy.contiguous(), dy.shape
    dx = dy.new_empty(batch, cols)
    native().spmm_blocks_input_grad(
        rows, cols, batch, height, width, units.row_ptr.data_ptr(), units.col.data_ptr(), values.data_ptr(),
        dy.data_ptr(), dx.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx


def _product(
    x: Tensor, values: Tensor, perm: Tensor | None, bias: Tensor | None, row_ptr: Tensor, col: Tensor, rows: int
) -> Tensor:
    """Y [batch, rows] by the native kernel for the block size of `values`; `perm` is the order they are read in."""
    x, (batch, cols) = x.contiguous(), x.shape
    y = x.new_empty(batch, rows)
    height, width = values.shape[1:]
    if height == 1:
        native().spmm(
            rows, cols, batch, row_ptr.data_ptr(), col.data_ptr(), values.data_ptr(), address(perm), address(bias),
            x.data_ptr(), y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    else:
        native().spmm_blocks(
            rows, cols, batch, height, width, row_ptr.data_ptr(), col.data_ptr(), values.data_ptr(), address(bias),
            x.data_ptr(), y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return y


def _triton() -> ModuleType:
    """The Triton kernels, imported when one runs."""
    from spfde.kernels.triton import spmm

    return spmm


class _Spmm(torch.autograd.Function):
    """The eager route: the same computations as the registered op, without the dispatcher's overhead."""

    @staticmethod
    def forward(ctx, x, values, bias, residual, plan, kernel, act, after):
        ctx.plan, ctx.version, ctx.kernel, ctx.act, ctx.after = plan, plan.version, kernel, act, after
        weight = seen = None
        if needs_dense(kernel, values):
            weight, ctx.written = write(values, plan)
        end = None
        shape = (
            (x.shape[0], plan.rows) if residual is None else residual.shape
        )  # what is added has its gradient's shape
        if kernel == "triton":
            end = Epilogue(bias, None, residual if residual is None else residual.reshape(-1, plan.rows), act, after)
            if end.hidden:
                seen = x.new_empty(shape, dtype=end.result(x.dtype))
                end = end._replace(kept=seen.view(-1, plan.rows))
        y = compute(x, values, bias, units_for(plan, kernel), plan.rows, kernel, weight, end)
        y = y if residual is None else y.view(shape)
        if act != "none" and seen is None:
            seen = y
        ctx.save_for_backward(x if values.requires_grad else None, values, seen)
        return y

    @staticmethod
    def backward(ctx, dy):
        ctx.plan.check(ctx.version)
        x, values, seen = ctx.saved_tensors
        plan, kernel = ctx.plan, ctx.kernel
        units = units_for(plan, kernel)
        need_x, need_values, need_bias, need_residual = ctx.needs_input_grad[:4]
        dx = dvalues = dbias = dresidual = None
        with without_graph():
            after, dy = dy, act_grad(dy, seen, ctx.act)
            if need_residual:
                dresidual = after if ctx.after else dy
            dy = cast(dy if dy.dim() == 2 else dy.reshape(-1, plan.rows), values.dtype)
            if need_x:
                weight = write(values, plan, ctx.written)[0] if needs_dense(kernel, values) else None
                dx = compute_input_grad(dy, values, units, plan.cols, kernel, weight)
            if need_values:
                dvalues, dbias = sddmm.compute(dy, x, units, values.shape[1:], need_bias, kernel)
            elif need_bias:
                dbias = dy.sum(0)
        grads = refuse_double_backward((dx, dvalues, dbias if need_bias else None, dresidual))
        return *grads, None, None, None, None


@torch.library.custom_op("spfde::spmm", mutates_args=())
def _op(x: Tensor, values: Tensor, bias: Tensor | None, units: Sequence[Tensor], rows: int, kernel: str) -> Tensor:
    index = unpacked(units)
    choice = dispatch.linear(kernel, x, rows, *dispatch.stored(index, values.shape[1:]))
    return compute(x, values, bias, index, rows, choice.kernel)


@torch.library.custom_op("spfde::spmm_input_grad", mutates_args=())
def _input_grad(dy: Tensor, values: Tensor, units: Sequence[Tensor], cols: int, kernel: str) -> Tensor:
    index = unpacked(units)
    choice = dispatch.linear_grad(kernel, dy, cols, *dispatch.stored(index, values.shape[1:]))
    return compute_input_grad(dy, values, index, cols, choice.kernel)


@_op.register_fake
def _fake(x, values, bias, units, rows, kernel):
    return x.new_empty(x.shape[0], rows)


@_input_grad.register_fake
def _input_grad_fake(dy, values, units, cols, kernel):
    return dy.new_empty(dy.shape[0], cols)


def _setup_context(ctx, inputs, output):
    x, values, _, units, _, kernel = inputs
    ctx.save_for_backward(x if values.requires_grad else None, values, *units)
    ctx.cols, ctx.kernel = x.shape[1], kernel


def _backward(ctx, dy):
    x, values, *units = ctx.saved_tensors
    need_x, need_values, need_bias = ctx.needs_input_grad[:3]
    dx = dvalues = dbias = None
    dy = dy.detach()
    if need_x:
        dx = torch.ops.spfde.spmm_input_grad(dy, values.detach(), units, ctx.cols, ctx.kernel)
    if need_values:
        dvalues, dbias = torch.ops.spfde.sddmm(dy, x.detach(), units, values.shape[1:], need_bias, ctx.kernel)
    elif need_bias:
        dbias = dy.sum(0)
    dx, dvalues, dbias = refuse_double_backward([dx, dvalues, dbias if need_bias else None])
    return dx, dvalues, dbias, [None] * len(units), None, None


_op.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.spfde.spmm)
def _flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.spmm_input_grad)
def _input_grad_flops(dy_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * prod(values_shape)
