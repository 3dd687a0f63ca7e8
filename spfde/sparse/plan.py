"""What the kernels read of a sparse weight, derived from its canonical index (`spfde.sparse.index`): a `Plan`.

A plan is never saved. A topology change derives it anew and writes it over the old one, in place: shapes depend on the
capacity alone, so that whatever reads these tensors, a CUDA graph too, reads the new topology.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import prod
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType, WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from spfde.sparse.index import Index, check_index, index_from_positions, positions_of
from spfde.sparse.kernel_index import ONE_TAP, KernelIndex, Window, places_of, transpose, unit_columns
from spfde.sparse.pattern import Grid
from spfde.sparse.written import Written

if TYPE_CHECKING:
    from spfde.sparse.live import Live

_PUBLISHED: WeakValueDictionary[int, Plan] = WeakValueDictionary()  # by the address of their row_ptr


def follow_index(index: KernelIndex) -> None:
    """Brings the published plan that `index` is of, if there is one, up to an index that was written in place."""
    plan = _PUBLISHED.get(index.row_ptr.data_ptr()) if index.row_ptr.is_cpu else None
    if plan is not None:
        plan.follow()


class Owner(Protocol):
    """Whose weight a plan is of."""

    def problem_with(self, positions: Tensor) -> str | None:
        """Why these positions cannot be stored, or None."""

    def index_read(self, unwritten: bool) -> bool:
        """The index may have been written in place: mends it or raises ValueError; whether to ask again next time."""

    def index_followed(self) -> None:
        """The plan was derived anew."""

    def show_gradient(self, dy: Tensor, x: Tensor) -> None:
        """A second derivative reaches the weight: the gradient of an output dy for an input x."""


@dataclass(eq=False)
class Plan:
    """Everything the kernels of one layer read, and scratch of the masked dense route.

    values_shape: of the layer's values. nnz: live blocks. index: the canonical one, in blocks of `grid`. block: what a
    kernel multiplies at once: (R, C), (1, 1) for single weights, (1, cols) for whole outputs. kept_rows: those outputs,
    else None. derived: what kernels make of it beside `kernel_index`, by kernel. calls: what `spfde.kernels.call` has
    worked out for the inputs met since the topology moved; last_seen: the latest input, also from before. live: what is
    trained of it, None where no block is frozen by itself.
    """

    shape: tuple[int, ...]
    values_shape: tuple[int, int, int]
    nnz: int
    index: Index
    grid: Grid
    block: tuple[int, int]
    kernel_index: KernelIndex
    written: Written = field(repr=False)
    window: Window = ONE_TAP
    kept_rows: Tensor | None = None
    derived: dict[str, Any] = field(default_factory=dict, repr=False)
    _order: Tensor | None = field(default=None, repr=False)
    _outside: Tensor | None = field(default=None, repr=False)
    _weights: int | None = field(default=None, repr=False)
    _dense: Tensor | None = field(default=None, repr=False)
    _builders: dict[str, Callable[[Plan], Any]] = field(default_factory=dict, repr=False)
    dense_version: int = field(default=0, repr=False)  # how often the dense buffer was written
    topology_version: int = field(default=0, repr=False)  # how often the topology moved

    def __post_init__(self) -> None:
        self.calls: dict[Any, Any] = {}
        self.last_seen: Any = None
        self.live: Live | None = None
        self.owner: ReferenceType[Owner] | None = None  # is told when others write the index

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
        """`KernelIndex.places`, made anew at every reading where they are not kept."""
        return places_of(self.kernel_index, self.shape)

    @property
    def multiplied(self) -> int:
        """Stored weights as the kernels see them, whole blocks at the edges: what dispatch decides by."""
        if self.block[0] == 1:
            return self.weights
        # On a GPU by the room there is: what a registered op knows without waiting for the device.
        return (self.values_shape[0] if self.index.col.is_cuda else self.nnz) * prod(self.block)

    @property
    def arranges(self) -> bool:
        """Whether `arrange` has anything to do."""
        return self._outside is not None or self._order is not None or self.values_shape[1] == 1 < self.values_shape[2]

    @property
    def arranged_block(self) -> tuple[int, int]:
        """R and C of the values that `arrange` gives."""
        return (1, 1) if self.values_shape[1] == 1 else self.values_shape[1:]

    def arrange(self, values: Tensor) -> Tensor:
        """The stored values as the kernels read them, differentiable: [units, 1, 1] for R == 1, else [capacity, R, C].

        What reaches outside the weight is held at 0 and gets gradient 0, as what is frozen does.
        """
        return self.ordered(self.hold(values))

    def hold(self, values: Tensor) -> Tensor:
        """The values, of which those that are frozen have gradient 0."""
        return values if self.live is None else self.live.hold(values)

    def ordered(self, values: Tensor) -> Tensor:
        """`arrange` with gradients for all values."""
        if self._outside is not None:
            return values.masked_fill(self._outside, 0)
        if self._order is not None:
            return values.reshape(-1).index_select(0, self._order).view(-1, 1, 1)
        return values.reshape(-1, 1, 1) if values.shape[1] == 1 < values.shape[2] else values

    def derive(self, name: str, build: Callable[[Plan], Any]) -> Any:
        """What `build` makes of the plan: tensors in tuples, made at the first call, remade in place at every move."""
        self._derive(name, build)
        return self.derived[name]

    def _derive(self, name: str, build: Callable[[Plan], Any]) -> None:
        if name not in self.derived:
            with torch.inference_mode(False), _disable_current_modes():  # it outlives the modes it is asked for in
                self.derived[name] = build(self)
                self._builders[name] = build

    # No part of a compiled graph, which would own what it makes. torch.compiler.assume_constant_result sets the same
    # mark, but imports torch._dynamo for it, which takes longer than all of spfde.
    _derive._dynamo_marked_constant = True

    def dense_buffer(self) -> Tensor:
        """A persistent float32 buffer of the flat dense weight and one element more, zero where nothing is stored."""
        if self._dense is None:
            with torch.inference_mode(False):  # it outlives the mode it is first asked for in
                size, device = prod(self.shape) + 1, self.index.col.device
                self._dense = torch.zeros(size, dtype=torch.float32, device=device)
        return self._dense

    def update_(self, other: Plan) -> None:
        """Takes over what another plan of this weight says, in place wherever a tensor's shape stays."""
        derived = {name: build(other) for name, build in self._builders.items()}
        for part in fields(self):
            if part.name not in _OWN:
                setattr(self, part.name, written_into(getattr(self, part.name), getattr(other, part.name)))
        for name, new in derived.items():
            self.derived[name] = written_into(self.derived[name], new)
        if self._dense is not None:
            self._dense.zero_()  # what is written next leaves other places alone
        self.calls.clear()
        self.dense_version += 1
        self.topology_version += 1
        if self.live is not None:
            self.live.follow(self)

    def follow(self) -> None:
        """Derives the plan anew, in place, if its index was written in place and says something else now.

        Raises:
            ValueError: what was written is no index of this weight, or the owner refuses it.
        """
        if not self.written.stale(self.index):
            return
        owner = None if self.owner is None else self.owner()
        with torch.inference_mode(False), _disable_current_modes():
            unwritten = self.written.same(self.index)
            if owner is not None:
                watched = owner.index_read(unwritten)
                unwritten = unwritten or self.written.same(self.index)
                if unwritten and watched:
                    return
            if unwritten:
                self.written.accept(self.index)
                return
            problem = check_index(self.index, *self.grid.shape, self.values_shape[0])
            if problem:
                raise ValueError(
                    f"{problem} (row_ptr and col were written in place), try load_state_dict, which checks"
                )
            whole = self.grid.block[0] == 1 < self.grid.block[1] == self.cols
            new = build_plan(self.index, self.shape, self.window, self.grid, whole)
            if owner is not None and (problem := owner.problem_with(new.positions)):
                raise ValueError(f"{problem} (row_ptr and col were written in place), try load_state_dict")
            self.update_(new)
            if owner is not None:
                owner.index_followed()

    follow._dynamo_marked_constant = True  # while a graph is traced: see `_derive`

    def publish(self) -> None:
        """Lets registered ops, which are given tensors alone, find the plan by its index; in a CPU's memory."""
        row_ptr = self.kernel_index.row_ptr
        if row_ptr.is_cpu and type(row_ptr) is Tensor:
            _PUBLISHED[row_ptr.data_ptr()] = self

    def check(self, version: int) -> None:
        """Refuses a backward pass whose forward pass saw another topology than the one that is here now.

        Raises:
            ValueError: it moved since `version`.
        """
        if version != self.topology_version:
            raise ValueError(
                "expected backward before the topology moved, got it after a move, try loss.backward() before "
                "topology.step(), move_to() or load_state_dict()"
            )


# What a plan keeps when it is updated.
_OWN = ("derived", "_builders", "_dense", "dense_version", "topology_version")


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
    single = grid.block == (1, 1) and grid.order is None
    places, weights = None, nnz * height * width
    if not (single and index.col.is_cpu):  # where kernels do without, they are not made
        places = index.col.new_full((capacity, height, width), grid.weights, dtype=torch.int64)
        places[:nnz] = grid.places(positions)
    if grid.ragged:  # only weights that stand one by one must be counted now
        weights = int((places < grid.weights).sum()) if height == 1 else None
    kept_rows = positions if whole and nnz and window.groups == 1 else None
    short = torch.int32 if grid.weights < 2**31 else torch.int64
    empty = index.col.new_empty(0)
    order = outside = None
    if height == 1:
        flat = empty if places is None else places.view(-1)
        moved = grid.order is not None or (width > 1 and (grid.taps > 1 or grid.ragged))
        if moved:  # the kernels walk a row's columns in order
            flat, order = torch.sort(flat, stable=True)
            order = order.to(short)
        unit = index if single else index_from_positions(flat[:weights], shape[0], cols, flat.numel())
        turned = (empty,) * 3 if kept_rows is not None else transpose(unit, weights, shape, window)
        kernel_index = KernelIndex(*unit, *turned, empty if flat.is_cpu else flat.to(short))
    else:
        outside = places == grid.weights if grid.ragged else None
        unit = (index.row_ptr * width, unit_columns(index, grid))
        kernel_index = KernelIndex(*unit, empty, empty, empty, places.view(-1).to(short))
    block = (1, cols) if kept_rows is not None else grid.block if height > 1 else (1, 1)
    values_shape = (capacity, height, width)
    return Plan(
        tuple(shape), values_shape, nnz, index, grid, block, kernel_index, Written(index), window, kept_rows,
        _order=order, _outside=outside, _weights=weights,
    )  # fmt: skip


def written_into(old: Any, new: Any) -> Any:
    """The new, within the tensors of the old where they agree in shape and type."""
    if old is new:  # the index itself: a copy would count as a write
        return old
    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape and old.dtype == new.dtype:
        return old.copy_(new)
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return getattr(type(old), "_make", tuple)(map(written_into, old, new))
    return new
