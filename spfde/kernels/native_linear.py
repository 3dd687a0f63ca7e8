"""The native products with a matrix: of a linear layer over samples, of a pointwise convolution over pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.memory_format import empty_like_layout, in_lanes
from spfde.kernels.panel_order import NativeIndex
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Product
from spfde.sparse.kernel_index import KernelIndex, slots


class Linear(Product):
    """Gradients have the layout of dy, row-major or lanes (see `spfde.kernels.memory_format.in_lanes`).

    The forward's result is row-major, as nn.Linear's is: what follows may call `view` on it.
    """

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
        x = x.contiguous()
        y = x.new_empty(len(x), problem.shape[0])
        multiply(x, values, bias, index, problem.shape, len(x), 1, y)
        return y

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        dy, positions = _positions(dy)
        dx = empty_like_layout(dy, problem.shape[1])
        multiply_transposed(dy, values, index, problem.shape, len(dy), positions, dx)
        return dx

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        if in_lanes(dy) != in_lanes(x):
            dy, x = dy.contiguous(), x.contiguous()
        (dy, positions), (x, _) = _positions(dy), _positions(x)
        return correlate(dy, x, index, block, problem.shape, len(x), positions, bias)


def _positions(x: Tensor) -> tuple[Tensor, int]:
    """x as the kernels read it, and how many of its samples are neighbours in memory."""
    return (x, len(x)) if in_lanes(x) else (x.contiguous(), 1)


# ---- of `batch` samples, `positions` of them neighbours in memory, see csrc/cpu/kernels/lanes.h ----------------------


def multiply(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: KernelIndex,
    shape: Sequence[int],
    batch: int,
    positions: int,
    y: Tensor,
) -> None:
    """Writes y = x W^T + bias, W of `shape` (rows, cols, ...)."""
    (rows, cols), (_, height, width) = shape[:2], values.shape
    run, block, perm = (native().spmm, (), (0,)) if height == 1 else (native().spmm_blocks, (height, width), ())
    run(
        rows, cols, batch, positions, *block, index.row_ptr.data_ptr(), index.col.data_ptr(), values.data_ptr(), *perm,
        0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), *_order(index), torch.get_num_threads(),
    )  # fmt: skip


def multiply_transposed(
    dy: Tensor, values: Tensor, index: KernelIndex, shape: Sequence[int], batch: int, positions: int, dx: Tensor
) -> None:
    """Writes dx = dy W; single weights by the transposed index."""
    (rows, cols), (_, height, width) = shape[:2], values.shape
    if height == 1:
        native().spmm(
            cols, rows, batch, positions, index.t_row_ptr.data_ptr(), index.t_col.data_ptr(), values.data_ptr(),
            index.t_perm.data_ptr(), 0, dy.data_ptr(), dx.data_ptr(), *_transposed_order(index),
            torch.get_num_threads(),
        )  # fmt: skip
    else:
        native().spmm_blocks_input_grad(
            rows, cols, batch, positions, height, width, index.row_ptr.data_ptr(), index.col.data_ptr(),
            values.data_ptr(), dy.data_ptr(), dx.data_ptr(), *_order(index), torch.get_num_threads(),
        )  # fmt: skip


def correlate(
    dy: Tensor,
    x: Tensor,
    index: KernelIndex,
    block: Sequence[int],
    shape: Sequence[int],
    batch: int,
    positions: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of values and, if wanted, bias (else empty)."""
    rows, cols = shape[:2]
    dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(rows if bias else 0)
    run, cut = (native().sddmm, ()) if block[0] == 1 else (native().sddmm_blocks, block)
    run(
        rows, cols, batch, positions, *cut, len(dvalues), index.row_ptr.data_ptr(), index.col.data_ptr(),
        dy.data_ptr(), x.data_ptr(), dvalues.data_ptr(), dbias.data_ptr() if bias else 0, *_order(index),
        torch.get_num_threads(),
    )  # fmt: skip
    return dvalues, dbias


_NO_ORDER = (0, 0, 0, 0, 0)  # it is made in the call


def _order(index: KernelIndex | NativeIndex) -> tuple[int, ...]:
    """How many weights the order of W has room for, and the addresses of its arrays."""
    if not isinstance(index, NativeIndex):
        return _NO_ORDER
    order = index.start, index.visits, index.offset, index.slot
    return index.slot.numel(), *(part.data_ptr() for part in order)


def _transposed_order(index: KernelIndex | NativeIndex) -> tuple[int, ...]:
    """The same of W transposed."""
    if not isinstance(index, NativeIndex):
        return _NO_ORDER
    order = index.t_start, index.t_visits, index.t_offset, index.t_slot
    return index.t_slot.numel(), *(part.data_ptr() for part in order)
