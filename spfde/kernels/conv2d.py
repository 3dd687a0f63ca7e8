"""conv2d: cross-correlation with a sparse weight, its input gradient, and its weight gradient at stored positions.

The native kernels read NCHW and channels_last memory alike; a result has the memory format of its input. Only memory
with gaps is copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels import dense, dispatch, whole
from spfde.kernels.clock import timed
from spfde.kernels.epilogue import Epilogue, act_grad, untracked
from spfde.kernels.masked import dense_weight, gather, scatter, to_dense, write
from spfde.kernels.memory import address, check_parameters, memory_format_of
from spfde.kernels.precision import (
    cast,
    compute_and_result_dtype,
    packed,
    refuse_double_backward,
    through_dispatcher,
    without_autocast,
    without_graph,
)
from spfde.kernels.sddmm import slots
from spfde.kernels.tiled import units_for
from spfde.pattern import Plan, Units, Window

Shape = tuple[int, ...]


def conv2d(
    x: Tensor, values: Tensor, plan: Plan, window: Window, bias: Tensor | None = None, kernel: str = "auto"
) -> Tensor:
    """The cross-correlation of x with the sparse weight of `plan`, plus bias.

    x: [batch, channels, height, width] or [channels, height, width]. values: [capacity, R, C]. bias: [out] or None.
    Returns [(batch,) out, out_height, out_width] in the precision that `spfde.kernels.precision` states.

    Raises:
        ValueError: x, values or bias do not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    channels = plan.shape[1] * window.groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"expected x of shape [batch, {channels}, height, width], got {list(x.shape)}")
    out_h, out_w = window.output_size(x.shape[-2], x.shape[-1])
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"expected an image at least as large as the kernel {list(window.kernel)} after padding "
            f"{list(window.padding)}, got {list(x.shape[-2:])}"
        )
    if x.dim() == 3:
        return conv2d(x.unsqueeze(0), values, plan, window, bias, kernel).squeeze(0)
    dispatch.check_device(x, values)
    dtype, result = compute_and_result_dtype(x, values)
    with without_autocast(x.device.type):
        check_parameters(values, plan.values_shape, bias, plan.rows)
        x, values, bias = cast(x, dtype), packed(values, dtype), packed(bias, dtype)
        if whole.applies(plan, kernel, dtype):
            y = whole.compute(lambda weight: dense.convolution(x, weight, None, window), values, plan, bias)
        elif through_dispatcher(x):
            y = torch.ops.spfde.conv2d(
                x, plan.arrange(values), bias, list(units_for(plan, kernel)), plan.shape, window.stride,
                window.padding, window.dilation, window.groups, kernel,
            )  # fmt: skip
        else:
            choice = dispatch.convolution(kernel, x, plan.shape, window, plan.multiplied, plan.block)
            values = plan.arrange(values)
            if choice.kernel == "reference":
                y = dense.convolution(x, dense_weight(values, plan), bias, window)
            else:
                y = _Conv2d.apply(x, values, bias, None, plan, window, choice.kernel, "none", False)
    return cast(y, result)


def fused(
    x: Tensor, values: Tensor, plan: Plan, window: Window, epilogue: Callable[[], Epilogue], kernel: str = "auto"
) -> Tensor | None:
    """Y = epilogue(conv2d(x)) in one Triton kernel; None where another runs, something misfits, or it has no gradient.

    Arguments as in `conv2d`, x with its batch; epilogue: made only where Triton runs, its residual shaped like y.
    """
    if x.dim() != 4 or x.shape[1] != plan.shape[1] * window.groups or x.device != values.device:
        return None
    size = window.output_size(*x.shape[2:])
    if min(size) < 1 or values.shape != plan.values_shape:
        return None
    dtype, result = compute_and_result_dtype(x, values)
    problem = (x.device.type, dtype, len(x), size, plan.shape, window, plan.multiplied, plan.block)
    if dispatch.choose_convolution(kernel, *problem).kernel != "triton":
        return None
    x, end = cast(x, dtype), epilogue()
    if not end.fits((len(x), plan.rows, *size), plan.rows, result, x.device):
        return None
    values, result, end = packed(values, dtype), end.result(result), end.in_precision(dtype)
    if untracked(x, values, *end.tensors):
        y = compute_fused(x, values, end, plan, window)
    elif end.has_gradient:
        bias, weights = packed(end.bias, dtype), plan.arrange(values)
        y = _Conv2d.apply(x, weights, bias, end.residual, plan, window, "triton", end.act, end.after)
    else:
        return None
    return cast(y, result)


@timed
def compute_fused(x: Tensor, values: Tensor, epilogue: Epilogue, plan: Plan, window: Window) -> Tensor:
    """Y [batch, out, out_h, out_w] by Triton, in the memory format of x."""
    units = units_for(plan, "triton")
    y = _triton().forward(x, plan.arrange(values), epilogue, units, plan.shape, window)
    return y.contiguous(memory_format=memory_format_of(x))


@timed
def compute(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    units: Units,
    shape: Shape,
    window: Window,
    kernel: str,
    weight: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Y [batch, out, out_h, out_w] outside autograd; `kernel` names one, "auto" is resolved before.

    weight: the dense one, if made. epilogue: what Triton's kernel ends with, the bias in it.
    """
    if kernel == "reference":
        return dense.convolution(x, to_dense(values, units, shape), bias, window)
    if kernel == "dense":
        return dense.convolution(x, scatter(values, units, shape) if weight is None else weight, bias, window)
    if kernel == "triton":
        y = _triton().forward(x, values, epilogue or Epilogue(bias), units, shape, window)
        return y.contiguous(memory_format=memory_format_of(x))
    x, last = _without_gaps(x)
    y = _empty(x, (x.shape[0], shape[0], *window.output_size(x.shape[2], x.shape[3])), last)
    run = native().conv2d if values.shape[1] == 1 else native().conv2d_blocks
    run(
        _native_plan(x.shape, shape, window), *_block(values.shape[1:]), units.row_ptr.data_ptr(),
        units.col.data_ptr(), values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(),
        last, last, torch.get_num_threads(),
    )  # fmt: skip
    return y


@timed
def compute_input_grad(
    dy: Tensor,
    values: Tensor,
    units: Units,
    size: Shape,
    shape: Shape,
    window: Window,
    kernel: str,
) -> Tensor:
    """DX [batch, channels, *size] outside autograd."""
    if kernel == "triton":
        dx = _triton().input_grad(dy, values, units, size, shape, window)
        return dx.contiguous(memory_format=memory_format_of(dy))
    x_shape = (dy.shape[0], shape[1] * window.groups, *size)
    if kernel != "native":
        return dense.gradients(dy, None, x_shape, scatter(values, units, shape), window, (True, False))[0]
    dy, last = _without_gaps(dy)
    dx = _empty(dy, x_shape, last)
    if values.shape[1] == 1:
        native().conv2d_input_grad(
            _native_plan(x_shape, shape, window), units.t_row_ptr.data_ptr(), units.t_col.data_ptr(),
            values.data_ptr(), units.t_perm.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last,
            torch.get_num_threads(),
        )  # fmt: skip
    else:
        native().conv2d_blocks_input_grad(
            _native_plan(x_shape, shape, window), *values.shape[1:], units.row_ptr.data_ptr(), units.col.data_ptr(),
            values.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last, torch.get_num_threads(),
        )  # fmt: skip
    return dx


@timed
def compute_weight_grad(
    dy: Tensor,
    x: Tensor,
    units: Units,
    block: Sequence[int],
    shape: Shape,
    window: Window,
    bias: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """The weight gradient [-1, R, C] and, if `bias`, the bias gradient [out] (else empty).

    block: R and C of the values, as `Plan.arrange` gives them.
    """
    if kernel == "triton":
        return _triton().weight_grad(dy, x, units, block, shape, window, bias)
    if kernel != "native":
        dweight = dense.gradients(dy, x, x.shape, dy.new_empty(1).expand(shape), window, (False, True))[1]
        return gather(dweight, units, block), dy.sum((0, 2, 3)) if bias else dy.new_empty(0)
    (dy, dy_last), (x, x_last) = _without_gaps(dy), _without_gaps(x)
    dvalues, dbias = x.new_empty(slots(units, block), *block), x.new_empty(shape[0] if bias else 0)
    run = native().conv2d_weight_grad if block[0] == 1 else native().conv2d_blocks_weight_grad
    run(
        _native_plan(x.shape, shape, window), *_block(block), dvalues.shape[0], units.row_ptr.data_ptr(),
        units.col.data_ptr(), dy.data_ptr(), x.data_ptr(), dy_last, x_last, dvalues.data_ptr(),
        dbias.data_ptr() if bias else 0, torch.get_num_threads(),
    )  # fmt: skip
    return dvalues, dbias


def _block(block: Sequence[int]) -> Sequence[int]:
    """R and C as the native kernels for blocks take them; those for single weights take none."""
    return () if block[0] == 1 else block


def _without_gaps(x: Tensor) -> tuple[Tensor, bool]:
    """The input, copied only if its memory has gaps, and whether it is channels_last."""
    memory = memory_format_of(x)
    return x.contiguous(memory_format=memory), memory == torch.channels_last


def _empty(like: Tensor, shape: Shape, channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory)


@lru_cache(maxsize=1024)
def _native_plan(x_shape: Shape, shape: Shape, window: Window) -> Any:
    """What the native convolutions of this shape share, see `Conv2dPlan` in csrc/cpu/geometry.h."""
    batch, channels, height, width = x_shape
    (out_h, out_w), padding = window.output_size(height, width), window.padding
    return native().Conv2dPlan(
        batch=batch, in_channels=channels, in_h=height, in_w=width, out_channels=shape[0], out_h=out_h, out_w=out_w,
        kernel_h=window.kernel[0], kernel_w=window.kernel[1], stride_h=window.stride[0], stride_w=window.stride[1],
        pad_top=padding[0], pad_left=padding[2], dilation_h=window.dilation[0], dilation_w=window.dilation[1],
        groups=window.groups,
    )  # fmt: skip


def _triton() -> ModuleType:
    """The Triton kernels, imported when one runs."""
    from spfde.kernels.triton import conv2d

    return conv2d


class _Conv2d(torch.autograd.Function):
    """The eager route: the same computations as the registered ops, without the dispatcher's overhead."""

    @staticmethod
    def forward(ctx, x, values, bias, residual, plan, window, kernel, act, after):
        ctx.plan, ctx.version, ctx.window, ctx.kernel, ctx.size = plan, plan.version, window, kernel, x.shape[2:]
        ctx.act, ctx.after = act, after
        weight = seen = None
        if kernel == "dense":
            weight, ctx.written = write(values, plan)
        units = units_for(plan, kernel)
        end = None
        if kernel == "triton":
            end = Epilogue(bias, None, residual, act, after)
            if end.hidden:
                size = (x.shape[0], plan.rows, *window.output_size(*x.shape[2:]))
                seen = _empty(x, size, True, end.result(x.dtype))
                end = end._replace(kept=seen)
        y = compute(x, values, bias, units, plan.shape, window, kernel, weight, end)
        if act != "none" and seen is None:
            seen = y
        ctx.save_for_backward(x if values.requires_grad else None, values, seen)
        return y

    @staticmethod
    def backward(ctx, dy):
        ctx.plan.check(ctx.version)
        x, values, seen = ctx.saved_tensors
        plan, window, kernel = ctx.plan, ctx.window, ctx.kernel
        need_x, need_values, need_bias, need_residual = ctx.needs_input_grad[:4]
        dx = dvalues = dbias = dresidual = None
        with without_graph():
            after, dy = dy, act_grad(dy, seen, ctx.act)
            if need_residual:
                dresidual = after if ctx.after else dy
            dy = cast(dy, values.dtype)
            if kernel == "dense":
                dx, dvalues = _masked_gradients(ctx, dy, x, values, (need_x, need_values))
            else:
                units, block = units_for(plan, kernel), values.shape[1:]
                if need_x:
                    dx = compute_input_grad(dy, values, units, ctx.size, plan.shape, window, kernel)
                if need_values:
                    dvalues, dbias = compute_weight_grad(dy, x, units, block, plan.shape, window, need_bias, kernel)
            if need_bias and dbias is None:
                dbias = dy.sum((0, 2, 3))
        grads = refuse_double_backward((dx, dvalues, dbias if need_bias else None, dresidual))
        return *grads, None, None, None, None, None


@timed
def _masked_gradients(
    ctx, dy: Tensor, x: Tensor | None, values: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and values by one call of torch's."""
    plan, window = ctx.plan, ctx.window
    size = (dy.shape[0], plan.shape[1] * window.groups, *ctx.size)
    weight = write(values, plan, ctx.written)[0]
    dx, dweight = dense.gradients(dy, x, size, weight, window, wanted)
    return dx, None if dweight is None else gather(dweight, plan.units, values.shape[1:])
