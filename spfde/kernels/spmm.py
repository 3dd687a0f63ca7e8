"""spmm: Y = X W^T + bias for a sparse weight, and with the transposed index its input gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde.kernels import call, plain
from spfde.kernels.dtypes import (
    cast,
    compute_and_result_dtype,
    exports_to_onnx,
    in_torch_ops,
    is_batched,
    packed,
    through_dispatcher,
    without_autocast,
)
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.memory_format import check_parameters, reshaped
from spfde.kernels.registry import Product, index_for, unpacked
from spfde.kernels.sddmm import resolve
from spfde.sparse.kernel_index import ONE_TAP
from spfde.sparse.plan import Plan


def spmm(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None = None, kernel: str = "auto") -> Tensor:
    """y = X W^T + bias for the sparse W of `plan`.

    x: [..., cols]. values: [capacity, R, C]. bias: [rows] or None. kernel: what settles it, see
    `spfde.kernels.dispatch.rule`. Returns [..., rows] in the precision that `spfde.kernels.dtypes` states.

    Raises:
        ValueError: x, values or bias do not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    shape = x.shape
    if not shape or shape[-1] != plan.shape[1]:
        raise ValueError(f"expected x of shape [..., {plan.shape[1]}], got {list(shape)}")
    through = through_dispatcher(x)
    if in_torch_ops() or (through and exports_to_onnx()):
        return plain.run(x, values, bias, plan)
    flat, full = (x, None) if len(shape) == 2 else (x.reshape(-1, shape[-1]), (*shape[:-1], plan.shape[0]))
    if through:
        y = _through_dispatcher(flat, values, plan, bias, kernel)
        return y if full is None else reshaped(y, full)
    return call.run(flat, values, bias, plan, call.find(flat, values, plan, bias, kernel), full)


def spmm_with_epilogue(
    x: Tensor, values: Tensor, plan: Plan, epilogue: Callable[[], Epilogue], kernel: str = "auto"
) -> Tensor | None:
    """y = epilogue(X W^T) in one kernel; None where the kernel takes none, it misfits, or it has no gradient.

    Arguments as in `spmm`; epilogue: made only where it may run, its residual [..., rows].
    """
    shape = x.shape
    if not shape or shape[-1] != plan.shape[1] or x.device != values.device or values.shape != plan.values_shape:
        return None
    if in_torch_ops():
        return None
    flat = x if len(shape) == 2 else x.reshape(-1, shape[-1])
    found = call.find(flat, values, plan, None, kernel)
    if not found.product.fuses_epilogue or found.composite is not None:
        return None
    return call.run_with_epilogue(flat, values, epilogue(), plan, found, (*shape[:-1], plan.shape[0]))


def _through_dispatcher(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None, kernel: str) -> Tensor:
    call.check_device(x, values)
    dtype, result = compute_and_result_dtype(x, values)
    call.note_seen(plan, x, dtype)
    with without_autocast(x.device.type):
        check_parameters(values, plan.values_shape, bias, plan.rows)
        x, values, bias = cast(x, dtype), packed(values, dtype), packed(bias, dtype)
        composite = call.composite_of(plan, kernel, dtype)
        if composite is not None:
            return cast(composite(x, values, bias, plan), result)
        index = list(index_for(plan, kernel))
        return cast(torch.ops.spfde.spmm(x, plan.arrange(values), bias, index, plan.rows, kernel), result)


# ---- registration, for torch.compile, fake tensors and dispatch modes ------------------------------------------------


@torch.library.custom_op("spfde::spmm", mutates_args=())
def _op(x: Tensor, values: Tensor, bias: Tensor | None, index: Sequence[Tensor], rows: int, kernel: str) -> Tensor:
    read, x = unpacked(index), x.contiguous()  # a compiled graph expects the layout of `_fake`
    product, problem = resolve(kernel, x, (rows, x.shape[1]), x.shape, read, values.shape[1:])
    return product.forward(x, values, bias, read, problem)


@torch.library.custom_op("spfde::spmm_input_grad", mutates_args=())
def _input_grad(dy: Tensor, values: Tensor, index: Sequence[Tensor], cols: int, kernel: str) -> Tensor:
    read, dy, size = unpacked(index), dy.contiguous(), (dy.shape[0], cols)
    product, problem = resolve(kernel, dy, (dy.shape[1], cols), size, read, values.shape[1:])
    return product.input_grad(dy, values, read, problem, size)


@_op.register_fake
def _fake(x, values, bias, index, rows, kernel):
    return x.new_empty(x.shape[0], rows)


@_input_grad.register_fake
def _input_grad_fake(dy, values, index, cols, kernel):
    return dy.new_empty(dy.shape[0], cols)


class _Registered(Product):
    """The gradients by registered ops, each of which settles its kernel when it runs. index: the list of tensors."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    def forward(self, x, values, bias, index, problem, weight=None, epilogue=None):
        return torch.ops.spfde.spmm(x, values, bias, index, problem.shape[0], self.kernel)

    def input_grad(self, dy, values, index, problem, size, weight=None):
        return torch.ops.spfde.spmm_input_grad(dy, values, index, size[1], self.kernel)

    def weight_grad(self, dy, x, index, block, problem, bias):
        return torch.ops.spfde.sddmm(dy, x, index, block, bias, self.kernel)


def _setup_context(ctx, inputs, output):
    x, values, _, index, _, kernel = inputs
    ctx.save_for_backward(x if values.requires_grad else None, values, *index)
    ctx.size, ctx.kernel = x.shape, kernel


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    needs, rest = ctx.needs_input_grad[:3], ([None] * len(index), None, None)
    if torch.is_grad_enabled() or is_batched(dy):
        weight = plain.weight_at(unpacked(index), (dy.shape[1], ctx.size[1]), ONE_TAP, values.shape[1:])
        return *plain.gradients(dy, x, values, weight, ctx.size, needs), *rest
    return *_Registered(ctx.kernel).gradients(dy, x, values, index, None, ctx.size, needs), *rest


_op.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.spfde.spmm)
def _flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.spmm_input_grad)
def _input_grad_flops(dy_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * prod(values_shape)
