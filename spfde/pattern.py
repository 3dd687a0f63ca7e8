"""Where the stored weights are: the one place that turns a mask into index structures.

A weight of shape [rows, ...] is seen as a matrix [rows, cols] and stored in blocks (see `spfde.structure`). Its
canonical index is `row_ptr` [block rows + 1] and `col` [capacity], int32, in blocks, columns ascending within a row;
the first `row_ptr[-1]` slots are live, the rest hold 0. Everything else a kernel wants is derived here into a `Plan`,
which is rebuilt after a topology change and never saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from spfde.structure import Grid
from spfde.tiles import Tiles


class Index(NamedTuple):
    """The canonical index of a sparse weight, in blocks."""

    row_ptr: Tensor
    col: Tensor


def index_from_positions(positions: Tensor, rows: int, cols: int, capacity: int) -> Index:
    """The index of what is stored at ascending flat `positions` [nnz] (int64) of a [rows, cols] matrix."""
    starts = torch.arange(rows + 1, device=positions.device) * cols
    col = torch.zeros(capacity, dtype=torch.int32, device=positions.device)
    col[: positions.numel()] = positions % cols
    return Index(torch.searchsorted(positions, starts, out_int32=True), col)


def positions_of(index: Index, cols: int) -> Tensor:
    """Flat positions [nnz] (int64), ascending, of what an index stores."""
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

    @property
    def linear(self) -> bool:
        """Whether the convolution is a linear layer, pixel by pixel."""
        return self._replace(dilation=(1, 1)) == Window()


ONE_TAP = Window()


class Units(NamedTuple):
    """What the kernels read of an index, in *units*: a unit is one column of a block, R weights that share an input.

    For R == 1 units are single weights, ascending within a row. The transpose groups them by input channel (and by the
    stride residue of their tap, see `csrc/include/spfde/conv2d.h`); `t_perm` maps its order to units, dead ones to
    themselves. For R > 1 units follow the blocks, the CPU kernels need no transpose, and `t_*` are empty until a GPU
    kernel for convolutions asks for the blocks' own (see `spfde.kernels.triton.conv2d_plan`).
    """

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    # Flat place of every kernel-side value in the dense weight (int64), its size where there is none.
    places: Tensor


@dataclass(eq=False)
class Plan:
    """Everything the kernels of one layer read, and scratch of the masked dense route.

    values_shape: of the layer's values. nnz: live blocks. weights: stored weights. positions: of the live blocks,
    ascending. block: what a kernel multiplies at once: (R, C), (1, 1) for single weights, (1, cols) for whole outputs.
    grid: how the weight is cut into blocks. kept: the whole outputs, else None. tiles: how GPU kernels walk the weight
    and its transpose, once one has asked for them.
    """

    shape: tuple[int, ...]
    values_shape: tuple[int, int, int]
    nnz: int
    weights: int
    positions: Tensor
    block: tuple[int, int]
    units: Units
    grid: Grid
    kept: Tensor | None = None
    tiles: tuple[Tiles, Tiles] | None = field(default=None, repr=False)  # see spfde.kernels.tiled
    _order: Tensor | None = field(default=None, repr=False)
    _outside: Tensor | None = field(default=None, repr=False)
    _dense: Tensor | None = field(default=None, repr=False)
    written: int = field(default=0, repr=False)  # how often the dense buffer was

    @property
    def rows(self) -> int:
        """Rows of the weight matrix (output features)."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of the weight matrix (weights per output feature, if dense)."""
        return prod(self.shape[1:])

    @property
    def multiplied(self) -> int:
        """Stored weights as the kernels see them, whole blocks at the edges: what dispatch decides by."""
        if self.block[0] == 1:
            return self.weights
        # On a GPU by the room there is: what a registered op knows without waiting for the device.
        return (self.values_shape[0] if self.positions.is_cuda else self.nnz) * prod(self.block)

    def arrange(self, values: Tensor) -> Tensor:
        """The stored values as the kernels read them, differentiable: [units, 1, 1] for R == 1, else [capacity, R, C].

        What reaches outside the weight is held at 0 and gets gradient 0.
        """
        if self._outside is not None:
            return values.masked_fill(self._outside, 0)
        if self._order is not None:
            return values.reshape(-1).index_select(0, self._order).view(-1, 1, 1)
        return values.reshape(-1, 1, 1) if values.shape[1] == 1 < values.shape[2] else values

    def dense_buffer(self) -> Tensor:
        """A persistent float32 buffer of the flat dense weight and one element more, zero where nothing is stored."""
        if self._dense is None:
            with torch.inference_mode(False):  # it outlives the mode it is first asked for in
                size, device = prod(self.shape) + 1, self.positions.device
                self._dense = torch.zeros(size, dtype=torch.float32, device=device)
        return self._dense


def build_plan(
    index: Index,
    shape: tuple[int, ...],
    window: Window = ONE_TAP,
    grid: Grid | None = None,
    whole: bool = False,
    positions: Tensor | None = None,
) -> Plan:
    """Derives the plan of a weight of dense `shape` from its canonical index.

    grid: how the weight is cut into blocks, single weights if None. whole: its blocks are whole outputs. positions: of
    the live blocks, where they are known already: how many there are, a GPU would have to be asked.
    """
    taps = prod(window.kernel)
    grid = grid or Grid(shape[0], prod(shape[1:]) // taps, taps)
    (height, width), capacity, cols = grid.block, index.col.numel(), prod(shape[1:])
    positions = positions_of(index, grid.shape[1]) if positions is None else positions
    nnz = positions.numel()
    places = index.col.new_full((capacity, height, width), grid.weights, dtype=torch.int64)
    places[:nnz] = grid.places(positions)
    single = grid.block == (1, 1)
    if single:
        positions = places.view(-1)[:nnz]  # the same numbers: keep them once
    weights = nnz * height * width if not grid.ragged else int((places < grid.weights).sum())
    kept = positions if whole and nnz and window.groups == 1 else None
    empty = index.col.new_empty(0)
    order = outside = None
    if height == 1:
        flat = places.view(-1)
        if width > 1 and (grid.taps > 1 or grid.ragged):  # the kernels walk a row's columns in order
            flat, order = torch.sort(flat, stable=True)
        unit = index if single else index_from_positions(flat[:weights], shape[0], cols, flat.numel())
        transpose = (empty,) * 3 if kept is not None else _transpose(flat[:weights], flat.numel(), shape, window)
        units = Units(*unit, *transpose, flat)
    else:
        outside = places == grid.weights if grid.ragged else None
        units = Units(index.row_ptr * width, _unit_columns(index, grid), empty, empty, empty, places.view(-1))
    block = (1, cols) if kept is not None else grid.block if height > 1 else (1, 1)
    values_shape = (capacity, height, width)
    return Plan(
        tuple(shape), values_shape, nnz, weights, positions, block, units, grid, kept, _order=order, _outside=outside
    )


def _unit_columns(index: Index, grid: Grid) -> Tensor:
    """Column [capacity * C] (int32) of every unit; one outside the weight repeats its neighbour, its value is 0."""
    channel = index.col.view(-1, 1) // grid.taps * grid.block[1]
    channel = (channel + torch.arange(grid.block[1], device=channel.device)).clamp_(max=grid.channels - 1)
    return (channel * grid.taps + index.col.view(-1, 1) % grid.taps).to(torch.int32).view(-1)


def _transpose(
    positions: Tensor, capacity: int, shape: tuple[int, ...], window: Window
) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed index of single weights at ascending flat `positions`, and its permutation; see `Units`."""
    rows, cols = shape[0], prod(shape[1:])
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
    perm = torch.arange(capacity, dtype=torch.int32, device=positions.device)
    perm[: positions.numel()] = order.to(torch.int32)
    return *index_from_positions(t_positions, t_rows, t_cols, capacity), perm
