"""Where the stored weights are: the one place that turns a mask into index structures.

A weight of shape [rows, ...] is seen as a matrix [rows, cols]. Its canonical index is `row_ptr` [rows + 1] and `col`
[capacity], int32, columns ascending within a row; the first `row_ptr[-1]` slots are live, the rest hold 0. Everything
else a kernel wants is derived here into a `Plan`, which is rebuilt after a topology change and never saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Index(NamedTuple):
    """The canonical index of a sparse weight."""

    row_ptr: Tensor
    col: Tensor


def parse_pattern(pattern: str) -> str:
    """Returns the pattern's name.

    Raises:
        ValueError: the pattern has no kernel in this version.
    """
    if pattern != "unstructured":
        raise ValueError(
            f"expected pattern 'unstructured', got {pattern!r}, try 'unstructured': structured patterns have no "
            f"kernel in this version"
        )
    return pattern


def index_from_positions(positions: Tensor, rows: int, cols: int, capacity: int) -> Index:
    """The index of the weights at ascending flat `positions` [nnz] (int64) of a [rows, cols] matrix."""
    row = positions // cols
    counts = torch.bincount(row, minlength=rows)
    row_ptr = torch.zeros(rows + 1, dtype=torch.int32, device=positions.device)
    row_ptr[1:] = counts.cumsum(0)
    col = torch.zeros(capacity, dtype=torch.int32, device=positions.device)
    col[: positions.numel()] = positions - row * cols
    return Index(row_ptr, col)


def positions_of(index: Index, cols: int) -> Tensor:
    """Flat positions [nnz] (int64), ascending, of the weights an index stores."""
    counts = index.row_ptr.long().diff()
    row = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)
    return row * cols + index.col[: row.numel()]


def check_index(index: Index, rows: int, cols: int, capacity: int) -> str | None:
    """What is wrong with an index that came from outside, or None: kernels trust it blindly."""
    row_ptr, col = index
    for name, tensor, shape in (("row_ptr", row_ptr, (rows + 1,)), ("col", col, (capacity,))):
        if tuple(tensor.shape) != shape or tensor.dtype != torch.int32:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            return f"expected {name} to be int32 {list(shape)}, got {got}"
    nnz = int(row_ptr[-1])
    if int(row_ptr[0]) != 0 or bool((row_ptr.diff() < 0).any()) or nnz > capacity:
        return f"expected row_ptr to ascend from 0 to at most {capacity}, got one that does not"
    live = col[:nnz]
    if nnz and (int(live.min()) < 0 or int(live.max()) >= cols):
        return f"expected columns in [0, {cols}), got [{int(live.min())}, {int(live.max())}]"
    if bool((positions_of(index, cols).diff() <= 0).any()):
        return "expected columns that ascend within each row, got unsorted or repeated ones"
    return None


class Window(NamedTuple):
    """How a weight [out, in, kernel_h, kernel_w] is applied; a linear layer is the default one-tap window.

    padding: zeros added at the top, bottom, left and right.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output of an image."""
        top, bottom, left, right = self.padding
        return (
            (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1,
            (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1,
        )


ONE_TAP = Window()


@dataclass(eq=False)
class Plan:
    """Everything the kernels of one layer read: the index, its transpose, and scratch of the masked dense route.

    The transpose groups the weights by input channel (and by the stride residue of their tap, see
    `csrc/include/spfde/conv2d.h`); `t_perm` maps its order to slots of `values`, dead slots to themselves.
    """

    shape: tuple[int, ...]
    nnz: int
    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    positions: Tensor
    _dense: Tensor | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Rows of the weight matrix (output features)."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of the weight matrix (weights per output feature, if dense)."""
        return prod(self.shape[1:])

    def dense_buffer(self) -> Tensor:
        """A persistent float32 buffer of the dense shape, zero wherever nothing is stored."""
        if self._dense is None:
            self._dense = torch.zeros(self.shape, device=self.row_ptr.device)
        return self._dense


def build_plan(index: Index, shape: tuple[int, ...], window: Window = ONE_TAP) -> Plan:
    """Derives the plan of a weight of dense `shape` from its canonical index."""
    rows, cols, capacity = shape[0], prod(shape[1:]), index.col.numel()
    device = index.col.device
    positions = positions_of(index, cols)
    nnz = positions.numel()
    taps = prod(window.kernel)
    out_group, in_group = rows // window.groups, cols // taps
    row, column = positions // cols, positions % cols
    tap = column % taps
    channel = row // out_group * in_group + column // taps
    tap_h, tap_w = tap // window.kernel[1], tap % window.kernel[1]
    phase_h = tap_h * window.dilation[0] % window.stride[0]
    phase_w = tap_w * window.dilation[1] % window.stride[1]
    t_row = (channel * window.stride[0] + phase_h) * window.stride[1] + phase_w
    t_rows, t_cols = in_group * window.groups * prod(window.stride), out_group * taps
    t_positions, order = torch.sort(t_row * t_cols + row % out_group * taps + tap)
    t_index = index_from_positions(t_positions, t_rows, t_cols, capacity)
    t_perm = torch.arange(capacity, dtype=torch.int32, device=device)
    t_perm[:nnz] = order.to(torch.int32)
    return Plan(
        shape=tuple(shape),
        nnz=nnz,
        row_ptr=index.row_ptr,
        col=index.col,
        t_row_ptr=t_index.row_ptr,
        t_col=t_index.col,
        t_perm=t_perm,
        positions=positions,
    )
