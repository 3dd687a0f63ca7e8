"""sddmm: dW = dY^T X at the stored places only, with the bias gradient in the same pass; registered for torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spfde.kernels.dispatch import rule
from spfde.kernels.problem import Problem, problem_of
from spfde.kernels.registry import Product, get, unpacked
from spfde.sparse.kernel_index import ONE_TAP, KernelIndex, Window, slots
from spfde.sparse.plan import follow_index


def resolve(
    kernel: str,
    like: Tensor,
    shape: tuple[int, ...],
    x_shape: Sequence[int],
    index: KernelIndex,
    block: Sequence[int],
    window: Window = ONE_TAP,
) -> tuple[Product, Problem]:
    """The product that a registered op runs, and its problem: found when it runs, so that no choice recompiles a graph.

    like: has the device and precision. shape: of the dense weight. x_shape: of the input. Stored weights are counted by
    the index, on a GPU as those that there is room for: reading the count would wait.
    """
    follow_index(index)
    height, width = block
    units = int(index.row_ptr[-1]) if index.row_ptr.device.type == "cpu" else index.col.numel()
    device = like.device.type
    problem = problem_of(shape, x_shape, units * height, (height, width), window, device, like.dtype)
    return get(rule.choose(kernel, device, like.dtype, problem).kernel).products[problem.op], problem


def multiplied(index_shapes: Sequence[Sequence[int]], block: Sequence[int]) -> int:
    """How many weights there is room for, by the shapes of a `KernelIndex`."""
    return index_shapes[1][0] * block[0]


@torch.library.custom_op("spfde::sddmm", mutates_args=())
def _op(
    dy: Tensor, x: Tensor, index: Sequence[Tensor], block: Sequence[int], bias: bool, kernel: str
) -> tuple[Tensor, Tensor]:
    read = unpacked(index)
    product, problem = resolve(kernel, x, (dy.shape[1], x.shape[1]), x.shape, read, block)
    return product.weight_grad(dy, x, read, block, problem, bias)


@_op.register_fake
def _fake(dy, x, index, block, bias, kernel):
    return x.new_empty(slots(unpacked(index), block), *block), x.new_empty(dy.shape[1] if bias else 0)


@register_flop_formula(torch.ops.spfde.sddmm)
def _flops(dy_shape, x_shape, index_shapes, block, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * multiplied(index_shapes, block)
