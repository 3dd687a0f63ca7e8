"""conv_transpose2d: the transpose of a sparse convolution, which is that convolution's input gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels import call
from spfde.kernels.conv2d import conv2d_input_grad
from spfde.kernels.dtypes import (
    cast,
    compute_and_result_dtype,
    exports_to_onnx,
    in_torch_ops,
    packed,
    through_dispatcher,
    without_autocast,
)
from spfde.kernels.memory_format import check_parameters, reshaped
from spfde.kernels.registry import index_for
from spfde.kernels.scatter import constant_places, place
from spfde.kernels.second_order import input_grad
from spfde.sparse.plan import Plan

Size = tuple[int, ...]


def conv_transpose2d(
    x: Tensor,
    values: Tensor,
    plan: Plan,
    bias: Tensor | None = None,
    output_padding: tuple[int, int] = (0, 0),
    kernel: str = "auto",
) -> Tensor:
    """The transpose of the convolution with the sparse weight of `plan` by its window, applied to x, plus bias.

    x: [batch, rows, height, width] or [rows, height, width]. values: [capacity, R, C]. bias: [columns] or None.
    output_padding: rows and columns of output more, below the stride. kernel: what settles it, as for `conv2d`; forward
    and input gradient are that convolution's, exchanged. Differentiable to any order.

    Raises:
        ValueError: x, values or bias do not fit, devices differ, or `kernel` names none or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    if x.dim() not in (3, 4) or x.shape[-3] != plan.rows:
        raise ValueError(f"expected x of shape [batch, {plan.rows}, height, width], got {list(x.shape)}")
    if x.dim() == 3:
        y = conv_transpose2d(x.unsqueeze(0), values, plan, bias, output_padding, kernel)
        return y.squeeze(0) if in_torch_ops() else reshaped(y, y.shape[1:])
    size = _size(x, plan, output_padding)
    call.check_device(x, values)
    compute, result = compute_and_result_dtype(x, values)
    check_parameters(values, plan.values_shape, bias, size[1])
    with without_autocast(x.device.type):
        x, values, bias = cast(x, compute), packed(values, compute), cast(bias, compute)
        y = _product(x, values, plan, size, output_padding, kernel)
        return cast(y if bias is None else y + bias.view(1, -1, 1, 1), result)


def _product(x: Tensor, values: Tensor, plan: Plan, size: Size, output_padding: tuple[int, int], kernel: str) -> Tensor:
    through = through_dispatcher(x)
    if in_torch_ops() or (through and exports_to_onnx()):
        return _in_torch(x, place(plan.arrange(values), constant_places(plan), plan.shape), plan, output_padding)
    if plan.kept_rows is not None:  # a smaller dense product
        call.note_seen(plan, x.new_empty(1).expand(size), x.dtype)
        weight = plan.hold(values)[: plan.nnz].reshape(plan.nnz, *plan.shape[1:])
        return _in_torch(x.index_select(1, plan.kept_rows), weight, plan, output_padding)
    if through:
        index = list(index_for(plan, kernel))
        return conv2d_input_grad(x, plan.arrange(values), index, size[2:], plan, kernel)
    # A convolution is chosen for by its input, which is the output here.
    found = call.find(x.new_empty(1).expand(size), values, plan, None, kernel)
    if found.composite is not None:
        return _in_torch(x, place(plan.arrange(values), constant_places(plan), plan.shape), plan, output_padding)
    return input_grad(x, plan.ordered(values), plan, found, size)


def _in_torch(x: Tensor, weight: Tensor, plan: Plan, output_padding: tuple[int, int]) -> Tensor:
    window = plan.window
    return F.conv_transpose2d(
        x, weight, None, window.stride, window.padding[::2], output_padding, window.groups, window.dilation
    )


def _size(x: Tensor, plan: Plan, output_padding: tuple[int, int]) -> Size:
    """The shape of the output."""
    window = plan.window
    height, width = (
        (length - 1) * stride - before - after + dilation * (taps - 1) + more + 1
        for length, stride, before, after, dilation, taps, more in zip(
            x.shape[2:], window.stride, window.padding[::2], window.padding[1::2], window.dilation, window.kernel,
            output_padding, strict=True,
        )
    )  # fmt: skip
    size = (x.shape[0], plan.shape[1] * window.groups, height, width)
    if not torch.compiler.is_compiling() and min(height, width) < 1:
        raise ValueError(f"expected an image that gives an output of one pixel or more, got {list(x.shape[-2:])}")
    return size
