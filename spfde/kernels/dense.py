"""The kernel "dense": torch's own product with a masked dense weight, in the memory format that is fast and safe.

torch 2.13's CPU gradients write out of bounds for some channels_last inputs: channels that are no multiple of 8 under a
stride that leaves pixels over, and dilation. Those run in contiguous memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.epilogue import Epilogue
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Gradients, Kernel, Product, bias_grad, register
from spfde.kernels.scatter import gather, scatter
from spfde.sparse.kernel_index import KernelIndex, Window


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution with a dense weight [out, in / groups, kernel_h, kernel_w], differentiable to any order."""
    x, padding = _symmetric(x.contiguous(memory_format=_memory(x, weight.shape, window)), window)
    return F.conv2d(x, weight, bias, window.stride, padding, window.dilation, window.groups)


def gradients(
    dy: Tensor, x: Tensor | None, size: Sequence[int], weight: Tensor, window: Window, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(input gradient, weight gradient) of the convolution, those that are wanted.

    size: the input's shape; x may be None where only its gradient is wanted, weight empty-strided where only its is.
    """
    memory = _memory(dy if x is None else x, weight.shape, window)
    x = (
        torch.empty(size, dtype=dy.dtype, device=dy.device, memory_format=memory)
        if x is None
        else x.contiguous(memory_format=memory)
    )
    x, padding = _symmetric(x, window)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy.contiguous(memory_format=memory), x, weight, None, window.stride, padding, window.dilation, False, (0, 0),
        window.groups, (*wanted, False),
    )  # fmt: skip
    if wanted[0] and tuple(dx.shape) != tuple(size):
        top, _, left, _ = window.padding
        dx = dx[:, :, top : top + size[2], left : left + size[3]]
    return dx, dweight


def _memory(x: Tensor, shape: tuple[int, ...], window: Window) -> torch.memory_format:
    safe = (
        window.groups == 1
        and window.dilation == (1, 1)
        and shape[0] % 8 == shape[1] % 8 == 0
        and window.padding[::2] == window.padding[1::2]
    )
    return memory_format_of(x) if safe else torch.contiguous_format


def _symmetric(x: Tensor, window: Window) -> tuple[Tensor, tuple[int, int]]:
    """The input and the padding that torch's convolutions take: unequal sides are padded beforehand."""
    top, bottom, left, right = window.padding
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


class DenseLinear(Product):
    """Matrix products with the whole weight."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """y = X W^T + bias."""
        return F.linear(x, scatter(values, index, problem.shape) if weight is None else weight, bias)

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        """dX = dY W."""
        return dy @ (scatter(values, index, problem.shape) if weight is None else weight)

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        """dW = dY^T X, gathered, and the bias gradient."""
        return gather(dy.t() @ x, index, block), dy.sum(0) if bias else dy.new_empty(0)


class DenseConv2d(Product):
    """Convolutions with the whole weight."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """y = conv2d(x, W) + bias."""
        weight = scatter(values, index, problem.shape) if weight is None else weight
        return convolution(x, weight, bias, problem.window)

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        """The input gradient, of shape `size`."""
        weight = scatter(values, index, problem.shape) if weight is None else weight
        return gradients(dy, None, size, weight, problem.window, (True, False))[0]

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        """The weight gradient, gathered, and the bias gradient."""
        weight = dy.new_empty(1).expand(problem.shape)
        dweight = gradients(dy, x, x.shape, weight, problem.window, (False, True))[1]
        return gather(dweight, index, block), bias_grad(dy) if bias else dy.new_empty(0)

    def gradients(
        self,
        dy: Tensor,
        x: Tensor | None,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        needs: Sequence[bool],
        weight: Tensor | None = None,
    ) -> Gradients:
        """Those of x and values by one call of torch's."""
        need_x, need_values, need_bias = needs
        if weight is None:  # its values matter for dX alone
            weight = scatter(values, index, problem.shape) if need_x else dy.new_empty(1).expand(problem.shape)
        dx, dweight = gradients(dy, x, size, weight, problem.window, (need_x, need_values))
        dvalues = None if dweight is None else gather(dweight, index, values.shape[1:])
        return dx, dvalues, bias_grad(dy) if need_bias else None


class Dense(Kernel):
    """The masked dense product: the fallback wherever zeros do not pay."""

    name = "dense"
    skips_zeros = False
    products: ClassVar = {"linear": DenseLinear(), "conv2d": DenseConv2d()}

    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Nothing: it runs everywhere."""
        return None


register(Dense())
