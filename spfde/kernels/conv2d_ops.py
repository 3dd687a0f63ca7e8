"""Registration of the conv2d ops with torch.library, for torch.compile, fake tensors and dispatch modes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde.kernels import conv2d
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.dtypes import refuse_double_backward
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.sddmm import multiplied, slots
from spfde.kernels.tiled import unpacked
from spfde.sparse.plan import Window


def _window(shape, stride, padding, dilation, groups) -> Window:
    return Window(tuple(shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)


@torch.library.custom_op("spfde::conv2d", mutates_args=())
def _conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    units: Sequence[Tensor],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    index, shape, window = unpacked(units), tuple(shape), _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution(kernel, x, shape, window, *dispatch.stored(index, values.shape[1:]))
    y = conv2d.compute(x, values, bias, index, shape, window, choice.kernel)
    return y.contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("spfde::conv2d_input_grad", mutates_args=())
def _input_grad(
    dy: Tensor,
    values: Tensor,
    units: Sequence[Tensor],
    size: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    index, shape, window = unpacked(units), tuple(shape), _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution_grad(kernel, dy, shape, window, *dispatch.stored(index, values.shape[1:]))
    dx = conv2d.compute_input_grad(dy, values, index, tuple(size), shape, window, choice.kernel)
    return dx.contiguous(memory_format=memory_format_of(dy))


@torch.library.custom_op("spfde::conv2d_weight_grad", mutates_args=())
def _weight_grad(
    dy: Tensor,
    x: Tensor,
    units: Sequence[Tensor],
    block: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    index, shape, window = unpacked(units), tuple(shape), _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution(kernel, x, shape, window, *dispatch.stored(index, block))
    return conv2d.compute_weight_grad(dy, x, index, block, shape, window, bias, choice.kernel)


def _like(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@_conv2d.register_fake
def _conv2d_fake(x, values, bias, units, shape, stride, padding, dilation, groups, kernel):
    size = _window(shape, stride, padding, dilation, groups).output_size(x.shape[2], x.shape[3])
    return _like(x, (x.shape[0], shape[0], *size))


@_input_grad.register_fake
def _input_grad_fake(dy, values, units, size, shape, stride, padding, dilation, groups, kernel):
    return _like(dy, (dy.shape[0], shape[1] * groups, *size))


@_weight_grad.register_fake
def _weight_grad_fake(dy, x, units, block, shape, stride, padding, dilation, groups, bias, kernel):
    return x.new_empty(slots(unpacked(units), block), *block), x.new_empty(shape[0] if bias else 0)


def _setup_context(ctx, inputs, output):
    x, values, _, units = inputs[:4]
    ctx.save_for_backward(x if values.requires_grad else None, values, *units)
    ctx.size, ctx.options = x.shape[2:], inputs[4:]


def _backward(ctx, dy):
    x, values, *units = ctx.saved_tensors
    *window, kernel = ctx.options
    need_x, need_values, need_bias = ctx.needs_input_grad[:3]
    dx = dvalues = dbias = None
    dy = dy.detach()
    if need_x:
        dx = torch.ops.spfde.conv2d_input_grad(dy, values.detach(), units, ctx.size, *window, kernel)
    if need_values:
        block = values.shape[1:]
        dvalues, dbias = torch.ops.spfde.conv2d_weight_grad(dy, x.detach(), units, block, *window, need_bias, kernel)
    elif need_bias:
        dbias = dy.sum((0, 2, 3))
    grads = refuse_double_backward([dx, dvalues, dbias if need_bias else None])
    return *grads, [None] * len(units), *[None] * 6


_conv2d.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.spfde.conv2d)
def _conv2d_flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.conv2d_input_grad)
def _input_grad_flops(dy_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.conv2d_weight_grad)
def _weight_grad_flops(dy_shape, x_shape, units_shapes, block, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * multiplied(units_shapes, block)
