"""Registration of the conv2d ops with torch.library, for torch.compile, fake tensors and dispatch modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde.kernels import conv2d, dispatch
from spfde.kernels.precision import refuse_double_backward
from spfde.pattern import Window


def _window(shape, stride, padding, dilation, groups) -> Window:
    return Window(tuple(shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)


@torch.library.custom_op("spfde::conv2d", mutates_args=())
def _conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    row_ptr: Tensor,
    col: Tensor,
    t_row_ptr: Tensor,
    t_col: Tensor,
    t_perm: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    window = _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution(kernel, x, tuple(shape), window, dispatch.stored(row_ptr))
    return conv2d.compute(x, values, bias, row_ptr, col, tuple(shape), window, choice.kernel).contiguous()


@torch.library.custom_op("spfde::conv2d_input_grad", mutates_args=())
def _input_grad(
    dy: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    t_row_ptr: Tensor,
    t_col: Tensor,
    t_perm: Tensor,
    size: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    window = _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution_grad(kernel, dy, tuple(shape), window, dispatch.stored(row_ptr))
    return conv2d.compute_input_grad(
        dy, values, row_ptr, col, t_row_ptr, t_col, t_perm, tuple(size), tuple(shape), window, choice.kernel
    ).contiguous()


@torch.library.custom_op("spfde::conv2d_weight_grad", mutates_args=())
def _weight_grad(
    dy: Tensor,
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    window = _window(shape, stride, padding, dilation, groups)
    choice = dispatch.convolution(kernel, x, tuple(shape), window, dispatch.stored(row_ptr))
    return conv2d.compute_weight_grad(dy, x, row_ptr, col, tuple(shape), window, bias, choice.kernel)


@_conv2d.register_fake
def _conv2d_fake(x, values, bias, row_ptr, col, t_row_ptr, t_col, t_perm, shape, stride, padding, dilation, groups,
                 kernel):  # fmt: skip
    size = _window(shape, stride, padding, dilation, groups).output_size(x.shape[2], x.shape[3])
    return x.new_empty(x.shape[0], shape[0], *size)


@_input_grad.register_fake
def _input_grad_fake(dy, values, row_ptr, col, t_row_ptr, t_col, t_perm, size, shape, stride, padding, dilation,
                     groups, kernel):  # fmt: skip
    return dy.new_empty(dy.shape[0], shape[1] * groups, *size)


@_weight_grad.register_fake
def _weight_grad_fake(dy, x, row_ptr, col, shape, stride, padding, dilation, groups, bias, kernel):
    return x.new_empty(col.shape[0], 1, 1), x.new_empty(shape[0] if bias else 0)


def _setup_context(ctx, inputs, output):
    x, values, _, *index = inputs[:8]
    ctx.save_for_backward(x, values, *index)
    ctx.options = inputs[8:]


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    *window, kernel = ctx.options
    need_x, need_values, need_bias = ctx.needs_input_grad[:3]
    dx = dvalues = dbias = None
    dy = dy.detach()
    if need_x:
        dx = torch.ops.spfde.conv2d_input_grad(dy, values.detach(), *index, x.shape[2:], *window, kernel)
    if need_values or need_bias:
        dvalues, dbias = torch.ops.spfde.conv2d_weight_grad(dy, x.detach(), *index[:2], *window, need_bias, kernel)
    grads = refuse_double_backward([dx, dvalues if need_values else None, dbias if need_bias else None])
    return *grads, *[None] * 11


_conv2d.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.spfde.conv2d)
def _conv2d_flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * values_shape[0]


@register_flop_formula(torch.ops.spfde.conv2d_input_grad)
def _input_grad_flops(dy_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * values_shape[0]


@register_flop_formula(torch.ops.spfde.conv2d_weight_grad)
def _weight_grad_flops(dy_shape, x_shape, row_ptr_shape, col_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * col_shape[0]
