"""The masked dense route: stored values into a dense weight, and a dense weight's gradient back to stored positions."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from spfde._native import native
from spfde.pattern import Index, positions_of


def to_dense(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense weight, zeros exact, differentiable in `values` to any order.

    values: [capacity, 1, 1]. positions: flat positions [nnz], int64. Returns a new tensor of `shape`.
    """
    live = values.reshape(-1)[: positions.numel()]
    return values.new_zeros(prod(shape)).index_put((positions,), live).view(shape)


def scatter(values: Tensor, row_ptr: Tensor, col: Tensor, shape: tuple[int, ...], buffer: Tensor | None) -> Tensor:
    """The dense weight, outside autograd; written into `buffer` if given, whose other elements are zero already."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return to_dense(values, positions_of(Index(row_ptr, col), prod(shape[1:])), shape)
    dense = torch.zeros(shape) if buffer is None else buffer
    native().scatter_values(
        shape[0], prod(shape[1:]), row_ptr.data_ptr(), col.data_ptr(), values.data_ptr(), dense.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return dense


def gather(dense: Tensor, row_ptr: Tensor, col: Tensor, capacity: int) -> Tensor:
    """The elements of `dense` at the stored positions, as values [capacity, 1, 1] with 0 in dead slots."""
    rows, cols = dense.shape[0], prod(dense.shape[1:])
    if dense.device.type != "cpu" or dense.dtype != torch.float32:
        positions = positions_of(Index(row_ptr, col), cols)
        values = dense.new_zeros(capacity, 1, 1)
        values.view(-1)[: positions.numel()] = dense.reshape(-1)[positions]
        return values
    dense = dense.contiguous()
    values = torch.empty(capacity, 1, 1)
    native().gather_values(
        rows, cols, capacity, row_ptr.data_ptr(), col.data_ptr(), dense.data_ptr(), values.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return values
