"""What the kernels read of a sparse weight, derived from its canonical index (`spfde.sparse.index`): a `Plan`.

A plan is never saved. A topology change derives it anew and writes it over the old one, in place: shapes depend on the
capacity alone, so that whatever reads these tensors, a CUDA graph too, reads the new topology.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from spfde.sparse.index import Index, index_from_positions, positions_of, spread
from spfde.sparse.no_sync import count_each
from spfde.sparse.pattern import Grid
from spfde.sparse.tiles import Tiles


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
    themselves. For R > 1 units follow the blocks, and `t_*` are empty: no kernel needs them.

    places: flat place in the dense weight of every value, the weight's size where there is none (int32 where it fits).
    Empty where the native kernels do without: for single weights on a CPU (see `places_of`).
    """

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    places: Tensor


@dataclass(eq=False)
class Plan:
    """Everything the kernels of one layer read, and scratch of the masked dense route.

    values_shape: of the layer's values. nnz: live blocks. index: the canonical one, in blocks of `grid`. block: what a
    kernel multiplies at once: (R, C), (1, 1) for single weights, (1, cols) for whole outputs. kept: those outputs, else
    None. tiles: how GPU kernels walk the weight and its transpose, once one has asked for them.
    """

    shape: tuple[int, ...]
    values_shape: tuple[int, int, int]
    nnz: int
    index: Index
    grid: Grid
    block: tuple[int, int]
    units: Units
    window: Window = ONE_TAP
    kept: Tensor | None = None
    tiles: tuple[Tiles, Tiles] | None = field(default=None, repr=False)  # see spfde.kernels.tiled
    _order: Tensor | None = field(default=None, repr=False)
    _outside: Tensor | None = field(default=None, repr=False)
    _weights: int | None = field(default=None, repr=False)
    _dense: Tensor | None = field(default=None, repr=False)
    written: int = field(default=0, repr=False)  # how often the dense buffer was
    version: int = field(default=0, repr=False)  # how often the topology moved

    @property
    def rows(self) -> int:
        """Rows of the weight matrix (output features)."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of the weight matrix (weights per output feature, if dense)."""
        return prod(self.shape[1:])

    @property
    def weights(self) -> int:
        """Stored weights. Where blocks reach outside the weight they are counted, when first asked for."""
        if self._weights is None:
            self._weights = int((self.grid.places(self.positions) < self.grid.weights).sum())
        return self._weights

    @property
    def positions(self) -> Tensor:
        """Positions [nnz] (int64, ascending) of the live blocks in the grid, made anew at every reading."""
        return positions_of(self.index, self.grid.shape[1], self.nnz)

    @property
    def places(self) -> Tensor:
        """`Units.places`, made anew at every reading where they are not kept."""
        return places_of(self.units, self.shape)

    @property
    def multiplied(self) -> int:
        """Stored weights as the kernels see them, whole blocks at the edges: what dispatch decides by."""
        if self.block[0] == 1:
            return self.weights
        # On a GPU by the room there is: what a registered op knows without waiting for the device.
        return (self.values_shape[0] if self.index.col.is_cuda else self.nnz) * prod(self.block)

    def arrange(self, values: Tensor) -> Tensor:
        """The stored values as the kernels read them, differentiable: [units, 1, 1] for R == 1, else [capacity, R, C].

        What reaches outside the weight is held at 0 and gets gradient 0.
        """
        if self._outside is not None:
            return values.masked_fill(self._outside, 0)
        if self._order is not None:
            return values.reshape(-1).index_select(0, self._order).view(-1, 1, 1)
        return values.reshape(-1, 1, 1) if values.shape[1] == 1 < values.shape[2] else values

    @torch.compiler.assume_constant_result  # no part of a compiled graph, which would own what it makes
    def tile(self) -> None:
        """Makes `tiles` where there are none."""
        from spfde.kernels.tiled import tiles_of

        if self.tiles is None:
            with torch.inference_mode(False), unset_fake_temporarily():  # they outlive the modes they are asked for in
                self.tiles = tiles_of(self)

    def dense_buffer(self) -> Tensor:
        """A persistent float32 buffer of the flat dense weight and one element more, zero where nothing is stored."""
        if self._dense is None:
            with torch.inference_mode(False):  # it outlives the mode it is first asked for in
                size, device = prod(self.shape) + 1, self.index.col.device
                self._dense = torch.zeros(size, dtype=torch.float32, device=device)
        return self._dense

    def become(self, other: Plan) -> None:
        """Takes over what another plan of this weight says, in place wherever a tensor's shape stays."""
        for part in fields(self):
            if part.name not in ("_dense", "written", "version"):
                setattr(self, part.name, _taken(getattr(self, part.name), getattr(other, part.name)))
        if self._dense is not None:
            self._dense.zero_()  # what is written next leaves other places alone
        self.written += 1
        self.version += 1

    def check(self, version: int) -> None:
        """Refuses a backward pass whose forward pass saw another topology than the one that is here now.

        Raises:
            ValueError: it moved since `version`.
        """
        if version != self.version:
            raise ValueError(
                "expected backward before the topology moved, got it after a move, try loss.backward() before "
                "topology.step(), move_to() or load_state_dict()"
            )


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
    weights = nnz * height * width
    if grid.ragged:  # only weights that stand one by one must be counted now
        weights = int((places < grid.weights).sum()) if height == 1 else None
    kept = positions if whole and nnz and window.groups == 1 else None
    short = torch.int32 if grid.weights < 2**31 else torch.int64
    empty = index.col.new_empty(0)
    order = outside = None
    if height == 1:
        flat = places.view(-1)
        if width > 1 and (grid.taps > 1 or grid.ragged):  # the kernels walk a row's columns in order
            flat, order = torch.sort(flat, stable=True)
            order = order.to(short)
        single = grid.block == (1, 1)
        unit = index if single else index_from_positions(flat[:weights], shape[0], cols, flat.numel())
        transpose = (empty,) * 3 if kept is not None else _transpose(unit, weights, shape, window)
        units = Units(*unit, *transpose, empty if flat.is_cpu else flat.to(short))
    else:
        outside = places == grid.weights if grid.ragged else None
        unit = (index.row_ptr * width, _unit_columns(index, grid))
        units = Units(*unit, empty, empty, empty, places.view(-1).to(short))
    block = (1, cols) if kept is not None else grid.block if height > 1 else (1, 1)
    values_shape = (capacity, height, width)
    return Plan(
        tuple(shape), values_shape, nnz, index, grid, block, units, window, kept,
        _order=order, _outside=outside, _weights=weights,
    )  # fmt: skip


def _taken(old: Any, new: Any) -> Any:
    """The new, within the tensors of the old where they agree in shape and type."""
    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape and old.dtype == new.dtype:
        return old.copy_(new)
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return getattr(type(old), "_make", tuple)(map(_taken, old, new))
    return new


def places_of(units: Units, shape: tuple[int, ...]) -> Tensor:
    """`Units.places` of a weight of dense `shape`, derived where it is empty."""
    if units.places.numel():
        return units.places
    live = positions_of(Index(units.row_ptr, units.col), prod(shape[1:]))
    return F.pad(live, (0, units.col.numel() - live.numel()), value=prod(shape))


def _unit_columns(index: Index, grid: Grid) -> Tensor:
    """Column [capacity * C] (int32) of every unit; one outside the weight repeats its neighbour, its value is 0."""
    channel = index.col.view(-1, 1) // grid.taps * grid.block[1]
    channel = (channel + torch.arange(grid.block[1], device=channel.device)).clamp_(max=grid.channels - 1)
    return (channel * grid.taps + index.col.view(-1, 1) % grid.taps).to(torch.int32).view(-1)


def _transpose(index: Index, nnz: int, shape: tuple[int, ...], window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed index of `nnz` single weights, and its permutation; see `Units`."""
    # What a weight's place in the transpose takes from its row and from its column is worked out once for each of them.
    device, rows, cols, taps = index.col.device, shape[0], prod(shape[1:]), prod(window.kernel)
    out_group, in_group, strides = rows // window.groups, cols // taps, prod(window.stride)
    row = torch.arange(rows, dtype=torch.int32, device=device)
    column = torch.arange(cols, dtype=torch.int32, device=device)
    tap = column % taps
    phase_h = tap // window.kernel[1] * window.dilation[0] % window.stride[0]
    phase_w = tap % window.kernel[1] * window.dilation[1] % window.stride[1]
    channel = column // taps * strides + phase_h * window.stride[1] + phase_w
    counts, live = index.row_ptr.diff(), index.col[:nnz]
    t_row = channel.index_select(0, live)
    if window.groups > 1:
        t_row += spread(row // out_group * (in_group * strides), counts, nnz)
    t_col = spread(row % out_group * taps, counts, nnz) + tap.index_select(0, live)
    t_rows = in_group * window.groups * strides
    # Within a row of the transpose the weights are in order already: a stable sort by it, of few digits, is enough.
    order = torch.sort(t_row.to(torch.int16) if t_rows < 2**15 else t_row, stable=True).indices
    t_row_ptr = index.row_ptr.new_zeros(t_rows + 1)
    t_row_ptr[1:] = count_each(t_row, t_rows).cumsum(0)
    padded = torch.zeros_like(index.col)
    padded[:nnz] = t_col.index_select(0, order)
    perm = torch.arange(index.col.numel(), dtype=torch.int32, device=device)
    perm[:nnz] = order
    return t_row_ptr, padded, perm
