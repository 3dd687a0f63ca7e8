"""conv2d: cross-correlation with a sparse weight, its input gradient, and its weight gradient at stored places."""

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
from spfde.kernels.memory_format import check_parameters, memory_format_of, reshaped
from spfde.kernels.registry import Product, index_for, unpacked
from spfde.kernels.sddmm import multiplied, resolve
from spfde.sparse.kernel_index import Window, slots
from spfde.sparse.plan import Plan


def conv2d(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None = None, kernel: str = "auto") -> Tensor:
    """The cross-correlation of x with the sparse weight of `plan` by its window, plus bias.

    x: [batch, channels, height, width] or [channels, height, width]. values: [capacity, R, C]. bias: [out] or None.
    kernel: what settles it, see `spfde.kernels.dispatch.rule`. Returns [(batch,) out, out_height, out_width] in the
    precision that `spfde.kernels.dtypes` states.

    Raises:
        ValueError: x, values or bias do not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    if x.dim() != 4:
        _check_image(x, plan)
        y = conv2d(x.unsqueeze(0), values, plan, bias, kernel)
        return y.squeeze(0) if in_torch_ops() else reshaped(y, y.shape[1:])
    through = through_dispatcher(x)
    if in_torch_ops() or (through and exports_to_onnx()):
        _check_image(x, plan)
        return plain.run(x, values, bias, plan)
    if through:
        _check_image(x, plan)
        return _through_dispatcher(x, values, plan, bias, kernel)
    return call.run(x, values, bias, plan, call.find(x, values, plan, bias, kernel, _check_image))


def conv2d_with_epilogue(
    x: Tensor, values: Tensor, plan: Plan, epilogue: Callable[[], Epilogue], kernel: str = "auto"
) -> Tensor | None:
    """y = epilogue(conv2d(x)) in one kernel; None where the kernel takes none, it misfits, or it has no gradient.

    Arguments as in `conv2d`, x with its batch; epilogue: made only where it may run, its residual shaped like y.
    """
    window = plan.window
    if x.dim() != 4 or x.shape[1] != plan.shape[1] * window.groups or x.device != values.device:
        return None
    size = window.output_size(*x.shape[2:])
    if min(size) < 1 or values.shape != plan.values_shape or in_torch_ops():
        return None
    found = call.find(x, values, plan, None, kernel)
    if not found.product.fuses_epilogue or found.composite is not None:
        return None
    return call.run_with_epilogue(x, values, epilogue(), plan, found, (len(x), plan.rows, *size))


def conv2d_input_grad(
    dy: Tensor, values: Tensor, index: list[Tensor], size: Sequence[int], plan: Plan, kernel: str
) -> Tensor:
    """dX [batch, channels, *size] by the registered op, differentiable. values: as `Plan.arrange` gives them."""
    window = plan.window
    return torch.ops.spfde.conv2d_input_grad(
        dy, values, index, size, plan.shape, window.stride, window.padding, window.dilation, window.groups, kernel
    )


def _check_image(x: Tensor, plan: Plan) -> None:
    window, channels = plan.window, plan.shape[1] * plan.window.groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"expected x of shape [batch, {channels}, height, width], got {list(x.shape)}")
    if min(window.output_size(x.shape[-2], x.shape[-1])) < 1:
        raise ValueError(
            f"expected an image at least as large as the kernel {list(window.kernel)} after padding "
            f"{list(window.padding)}, got {list(x.shape[-2:])}"
        )


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
        window, index = plan.window, list(index_for(plan, kernel))
        y = torch.ops.spfde.conv2d(
            x, plan.arrange(values), bias, index, plan.shape, window.stride, window.padding, window.dilation,
            window.groups, kernel,
        )  # fmt: skip
        return cast(y, result)


# ---- registration, for torch.compile, fake tensors and dispatch modes ------------------------------------------------


def _window(shape, stride, padding, dilation, groups) -> Window:
    return Window(tuple(shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)


@torch.library.custom_op("spfde::conv2d", mutates_args=())
def _op(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Sequence[Tensor],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    read, window = unpacked(index), _window(shape, stride, padding, dilation, groups)
    product, problem = resolve(kernel, x, tuple(shape), x.shape, read, values.shape[1:], window)
    return product.forward(x, values, bias, read, problem).contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("spfde::conv2d_input_grad", mutates_args=())
def _input_grad(
    dy: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    size: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel: str,
) -> Tensor:
    read, window = unpacked(index), _window(shape, stride, padding, dilation, groups)
    size = (dy.shape[0], shape[1] * groups, *size)
    product, problem = resolve(kernel, dy, tuple(shape), size, read, values.shape[1:], window)
    return product.input_grad(dy, values, read, problem, size).contiguous(memory_format=memory_format_of(dy))


@torch.library.custom_op("spfde::conv2d_weight_grad", mutates_args=())
def _weight_grad(
    dy: Tensor,
    x: Tensor,
    index: Sequence[Tensor],
    block: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    read, window = unpacked(index), _window(shape, stride, padding, dilation, groups)
    product, problem = resolve(kernel, x, tuple(shape), x.shape, read, block, window)
    return product.weight_grad(dy, x, read, block, problem, bias)


def _like(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@_op.register_fake
def _fake(x, values, bias, index, shape, stride, padding, dilation, groups, kernel):
    size = _window(shape, stride, padding, dilation, groups).output_size(x.shape[2], x.shape[3])
    return _like(x, (x.shape[0], shape[0], *size))


@_input_grad.register_fake
def _input_grad_fake(dy, values, index, size, shape, stride, padding, dilation, groups, kernel):
    return _like(dy, (dy.shape[0], shape[1] * groups, *size))


@_weight_grad.register_fake
def _weight_grad_fake(dy, x, index, block, shape, stride, padding, dilation, groups, bias, kernel):
    return x.new_empty(slots(unpacked(index), block), *block), x.new_empty(shape[0] if bias else 0)


class _Registered(Product):
    """The gradients by registered ops, each of which settles its kernel when it runs. index: the list of tensors.

    options: shape, stride, padding, dilation and groups.
    """

    def __init__(self, options: Sequence, kernel: str) -> None:
        self.options, self.kernel = options, kernel

    def forward(self, x, values, bias, index, problem, weight=None, epilogue=None):
        return torch.ops.spfde.conv2d(x, values, bias, index, *self.options, self.kernel)

    def input_grad(self, dy, values, index, problem, size, weight=None):
        return torch.ops.spfde.conv2d_input_grad(dy, values, index, size[2:], *self.options, self.kernel)

    def weight_grad(self, dy, x, index, block, problem, bias):
        return torch.ops.spfde.conv2d_weight_grad(dy, x, index, block, *self.options, bias, self.kernel)


def _setup_context(ctx, inputs, output):
    x, values, _, index, *options, kernel = inputs
    ctx.save_for_backward(x if values.requires_grad else None, values, *index)
    ctx.size, ctx.options, ctx.kernel = x.shape, options, kernel


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    needs, rest = ctx.needs_input_grad[:3], ([None] * len(index), *[None] * 6)
    if torch.is_grad_enabled() or is_batched(dy):
        weight = plain.weight_at(unpacked(index), tuple(ctx.options[0]), _window(*ctx.options), values.shape[1:])
        return *plain.gradients(dy, x, values, weight, ctx.size, needs), *rest
    return *_Registered(ctx.options, ctx.kernel).gradients(dy, x, values, index, None, ctx.size, needs), *rest


_op.register_autograd(_backward, setup_context=_setup_context)


def _setup_input_grad(ctx, inputs, output):
    dy, values, index, _, *options, kernel = inputs
    ctx.save_for_backward(dy if values.requires_grad else None, values, *index)
    ctx.size, ctx.options, ctx.kernel = output.shape, options, kernel


def _input_grad_backward(ctx, grad):
    dy, values, *index = ctx.saved_tensors
    need_dy, need_values, window = *ctx.needs_input_grad[:2], _window(*ctx.options)
    ddy = dvalues = None
    if torch.is_grad_enabled() or is_batched(grad):
        weight = plain.weight_at(unpacked(index), tuple(ctx.options[0]), window, values.shape[1:])
        ddy = plain.derivative(None, grad, values, weight, ctx.size) if need_dy else None
        dvalues = plain.derivative(dy, grad, None, weight, ctx.size) if need_values else None
    else:
        product = _Registered(ctx.options, ctx.kernel)
        ddy = product.forward(grad, values, None, index, None) if need_dy else None
        if need_values:
            dvalues = product.weight_grad(dy, grad, index, values.shape[1:], None, False)[0]
    return ddy, dvalues, [None] * len(index), *[None] * 7


_input_grad.register_autograd(_input_grad_backward, setup_context=_setup_input_grad)


@register_flop_formula(torch.ops.spfde.conv2d)
def _flops(x_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.conv2d_input_grad)
def _input_grad_flops(dy_shape, values_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * prod(values_shape)


@register_flop_formula(torch.ops.spfde.conv2d_weight_grad)
def _weight_grad_flops(dy_shape, x_shape, index_shapes, block, *args, out_shape=None, **kwargs) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * multiplied(index_shapes, block)
