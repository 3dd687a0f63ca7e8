"""The dense convolution behind the masked route: torch's own, in the memory format that is fast and safe.

torch 2.13's CPU gradients write out of bounds for some channels_last inputs: channels that are no multiple of 8 under a
stride that leaves pixels over, and dilation. Those run in contiguous memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.memory_format import memory_format_of
from spfde.sparse.plan import Window


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution with a dense weight [out, in / groups, kernel_h, kernel_w], differentiable to any order."""
    x, padding = _symmetric(x.contiguous(memory_format=_memory(x, weight.shape, window)), window)
    return F.conv2d(x, weight, bias, window.stride, padding, window.dilation, window.groups)


def gradients(
    dy: Tensor, x: Tensor | None, size: tuple[int, ...], weight: Tensor, window: Window, wanted: tuple[bool, bool]
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
