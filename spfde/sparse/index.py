"""Where the stored weights are: the one place that turns positions into an index, and back.

A weight of shape [rows, ...] is seen as a matrix [rows, cols] and stored in blocks (see `spfde.sparse.pattern`). Its
canonical index is `row_ptr` [block rows + 1] and `col` [capacity], int32, in blocks, columns ascending within a row;
the first `row_ptr[-1]` slots are live, the rest hold 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Index(NamedTuple):
    """The canonical index of a sparse weight, in blocks."""

    row_ptr: Tensor
    col: Tensor


def index_from_positions(positions: Tensor, rows: int, cols: int, capacity: int) -> Index:
    """The index of what is stored at ascending flat `positions` [nnz] (int64) of a [rows, cols] matrix."""
    start = torch.arange(rows + 1, device=positions.device) * cols
    row_ptr = torch.searchsorted(positions, start, out_int32=True)
    col = torch.zeros(capacity, dtype=torch.int32, device=positions.device)
    col[: positions.numel()] = positions - spread(start[:-1], row_ptr.diff(), positions.numel())
    return Index(row_ptr, col)


def positions_of(index: Index, cols: int, nnz: int | None = None) -> Tensor:
    """Flat positions [nnz] (int64), ascending, of what an index stores; without `nnz` the index is asked for it."""
    counts, nnz = index.row_ptr.diff(), int(index.row_ptr[-1]) if nnz is None else nnz
    start = torch.arange(counts.numel(), device=counts.device) * cols
    return spread(start, counts, nnz) + index.col[:nnz]


def check_index(index: Index, rows: int, cols: int, capacity: int) -> str | None:
    """What is wrong with an index that came from outside, or None: kernels trust it blindly."""
    row_ptr, col = index
    for name, tensor, shape in (("row_ptr", row_ptr, (rows + 1,)), ("col", col, (capacity,))):
        if not isinstance(tensor, Tensor):
            return f"expected {name} to be int32 {list(shape)}, got {type(tensor).__name__}"
        if tuple(tensor.shape) != shape or tensor.dtype != torch.int32:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            return f"expected {name} to be int32 {list(shape)}, got {got}"
    nnz = int(row_ptr[-1])
    if int(row_ptr[0]) != 0 or bool((row_ptr[1:] < row_ptr[:-1]).any()) or nnz > capacity:  # a difference may wrap
        return f"expected row_ptr to ascend from 0 to at most {capacity}, got one that does not"
    live = col[:nnz]
    if nnz and (int(live.min()) < 0 or int(live.max()) >= cols):
        return f"expected columns in [0, {cols}), got [{int(live.min())}, {int(live.max())}]"
    if bool((positions_of(index, cols).diff() <= 0).any()):
        return "expected columns that ascend within each row, got unsorted or repeated ones"
    return None


def spread(of_row: Tensor, counts: Tensor, nnz: int) -> Tensor:
    """What every row has, for each of its `counts` weights."""
    return torch.repeat_interleave(of_row, counts, output_size=nnz)


def permute(tensor: Tensor, source: Tensor) -> None:
    """tensor[i] = tensor[source[i]], or 0 where source[i] < 0, in place: a topology change carried along."""
    moved = tensor.index_select(0, source.clamp(min=0))
    tensor.copy_(moved.masked_fill_((source < 0).view(-1, *[1] * (tensor.dim() - 1)), 0))
