"""A weight stored as values and an index: what follows from the index, how it is moved, copied and loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spfde.kernels.dtypes import is_batched
from spfde.nn import held
from spfde.nn.lineage import Lineage
from spfde.nn.loading import check_loaded, index_from_dense
from spfde.sparse.index import Index, check_index, index_from_positions, permute
from spfde.sparse.kernel_index import Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import Plan, build_plan


@dataclass(frozen=True, eq=False)
class Stored:
    """What a layer stores of a weight of dense `shape`.

    positions: of its blocks in the pattern's grid [n] (int64, ascending). blocks: their values [n, R, C]. trained:
    whether the values require gradients.
    """

    shape: tuple[int, ...]
    positions: Tensor
    blocks: Tensor
    trained: bool = True

    @classmethod
    def of(
        cls, weight: Tensor, mask: Tensor | None, pattern: str, groups: int = 1, positions: Tensor | None = None
    ) -> Stored:
        """That of a dense weight: at `positions`, which are right, else where `mask` is true, else its nonzeros.

        Raises:
            ValueError: the mask's shape or dtype differs from the weight's, or it violates the pattern.
        """
        rule = Pattern.parse(pattern)
        grid = rule.grid(tuple(weight.shape), groups)
        if positions is None:
            mask = weight.detach() != 0 if mask is None else mask
            if mask.shape != weight.shape or mask.dtype != torch.bool:
                got = f"{mask.dtype} {list(mask.shape)}"
                raise ValueError(f"expected mask to be bool {list(weight.shape)}, got {got}, try mask.bool()")
            positions = rule.positions(mask.to(weight.device), grid)
        return cls(tuple(weight.shape), positions, grid.cut(weight.detach())[positions], weight.requires_grad)


class Indexed(nn.Module):
    """A module whose weight is stored as `values` [capacity, R, C] and an index, `row_ptr` and `col`.

    The index is the only buffer; the plan is derived from it, and anew whenever it changes, whoever changed it.
    """

    values: nn.Parameter
    row_ptr: Tensor
    col: Tensor
    turned: ClassVar[bool] = False  # whether torch's dense weight is [inputs, outputs]

    def __init__(self, stored: Stored, pattern: str, window: Window) -> None:
        super().__init__()
        self.pattern = Pattern.parse(pattern)
        self.shape = torch.Size(stored.shape)
        self.window = window
        self.grid = self.pattern.grid(tuple(self.shape), window.groups)
        room = max(
            1, stored.positions.numel()
        )  # where nothing is stored one slot is dead: torch has no norm of nothing
        index = index_from_positions(stored.positions, *self.grid.shape, room)
        blocks = stored.blocks
        blocks = blocks if len(blocks) == room else blocks.new_zeros(room, *blocks.shape[1:])
        self.values = nn.Parameter(blocks, stored.trained)
        self.register_buffer("row_ptr", index.row_ptr)
        self.register_buffer("col", index.col)
        self._plan: Plan | None = None
        self._held: Tensor | None = None  # positions of blocks that are frozen by themselves
        self._lineage = Lineage()
        self._lineage.begin(self)
        self._build_plan()

    @property
    def plan(self) -> Plan:
        """What the kernels read; a topology change writes into its tensors, and it is never saved."""
        plan = self._plan
        if plan is None:
            raise ValueError("expected data, got a layer on the meta device, try load_state_dict(state, assign=True)")
        # Once while a graph is traced: later the registered ops look.
        if torch.compiler.is_compiling() or plan.written.stale(plan.index):
            plan.follow()
        buffers, index = self._buffers, plan.index
        if buffers["row_ptr"] is not index.row_ptr or buffers["col"] is not index.col:
            self._take_over(Index(buffers["row_ptr"], buffers["col"]))
        permuted = self._modules.get("permutation")
        if permuted is not None and not torch.compiler.is_compiling() and permuted.follow():
            self._build_plan(self._plan.positions)
        return self._plan

    def _take_over(self, index: Index) -> None:
        """Follows buffers that were exchanged, by torch.func.functional_call or by hand."""
        if torch.compiler.is_compiling() or not all(type(part) is Tensor for part in index):
            return  # while a graph is traced they are stand-ins
        if any(is_batched(part) for part in index):
            raise ValueError(
                f"expected one index, got a {type(self).__name__} whose index is one of many under torch.func, try a "
                "loop over the models, or buffers that are not mapped"
            )
        problem = check_index(index, *self.grid.shape, self.values.shape[0])
        if problem:
            raise ValueError(f"{problem} (row_ptr and col were exchanged), try load_state_dict, which checks")
        self._build_plan()

    def _build_plan(self, positions: Tensor | None = None) -> None:
        if self.row_ptr.is_meta and positions is None:  # it cannot be asked where the blocks are
            self._plan = None
            return
        index, whole, before = Index(self.row_ptr, self.col), self.pattern.kind == "channel", self._plan
        with torch.inference_mode(False):  # it outlives the mode it is made in
            plan = build_plan(index, self.shape, self.window, self.grid, whole, positions)
            if before is not None and before.index.row_ptr is self.row_ptr and before.index.col is self.col:
                before.update_(plan)
            else:
                plan.last_seen = None if before is None else before.last_seen
                self._plan = plan
            self._plan.owner = ref(self)
            self._plan.publish()
            if self._held is not None and self._plan.live is None:
                held.follow(self)

    # ---- what is stored -------------------------------------------------------------------------------------------

    @property
    def nnz(self) -> int:
        """Number of stored blocks: single weights unless the pattern says otherwise."""
        return self.plan.nnz

    @property
    def stored(self) -> int:
        """Number of stored weights."""
        return self.plan.weights

    @property
    def sparsity(self) -> float:
        """Share of the weights that is not stored, in [0, 1]."""
        return 1.0 - self.stored / max(1, prod(self.shape))

    def positions(self) -> Tensor:
        """Positions [nnz] (int64, ascending) of the stored blocks in the pattern's grid (see `spfde.sparse.pattern`).

        For patterns of single weights that is their flat place in the dense weight.
        """
        return self.plan.positions

    def mask(self) -> Tensor:
        """Bool tensor of the dense shape, true exactly at the stored positions (a stored value may be 0)."""
        mask = torch.zeros(prod(self.shape) + 1, dtype=torch.bool, device=self.values.device)
        mask[self.plan.places.long()] = True
        return self.as_dense(mask[:-1])

    def mask_at(self, positions: Tensor) -> Tensor:
        """Bool tensor of the dense shape, true exactly in the blocks at these positions (int64) of the grid."""
        mask = torch.zeros(prod(self.shape) + 1, dtype=torch.bool, device=self.values.device)
        mask[self.grid.places(positions).view(-1)] = True
        return self.as_dense(mask[:-1])

    @property
    def dense_shape(self) -> torch.Size:
        """The shape of the dense weight as torch has it; `shape` is that of the kernels, outputs first."""
        return self.shape[::-1] if self.turned else self.shape

    def as_dense(self, weight: Tensor) -> Tensor:
        """A weight of the kernels as torch has it: a view."""
        return weight.view(self.shape).mT if self.turned else weight.view(self.dense_shape)

    def rows_first(self, dense: Tensor) -> Tensor:
        """A dense weight as the kernels have it, the other way round."""
        return dense.mT if self.turned else dense.reshape(self.shape)

    # ---- topology -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def move_to(self, positions: Tensor, new: Tensor | None = None) -> Tensor:
        """Changes which blocks are stored; kept ones keep their values, new ones start at 0.

        Every tensor that a kernel reads changes in place: a captured CUDA graph goes on with the new topology (of
        pattern "channel" only while the count stays).

        positions: as `positions()` gives them (int64), ascending, unique, at most `capacity`. new: those among them
        that start at 0 even if they were stored before. Returns `source` [capacity]: the old slot that each slot of
        `values` now holds, -1 where it holds a new block or none. The caller applies it to whatever else is shaped like
        `values` (see `permute`).

        Raises:
            ValueError: positions are unsorted, repeated, out of range, more than the capacity, on another device, or
                violate the pattern, or leave out a frozen block.
        """
        self.check_values()
        capacity, size, device = self.values.shape[0], self.grid.size, self.values.device
        if positions.device != device or (new is not None and new.device != device):
            got = positions.device if positions.device != device else new.device
            raise ValueError(f"expected positions on {device} like the layer, got {got}, try .to({str(device)!r})")
        if positions.dtype != torch.int64 or positions.dim() != 1 or positions.numel() > capacity:
            raise ValueError(
                f"expected at most {capacity} int64 positions (the layer's capacity), got {positions.dtype} "
                f"{list(positions.shape)}"
            )
        outside = (positions[:1] < 0).any() | (positions[-1:] >= size).any()
        if outside | (positions[1:] <= positions[:-1]).any():  # one question to the device
            raise ValueError(f"expected ascending unique positions in [0, {size}), got others")
        new = None if new is None else positions[torch.isin(positions, new)]
        kept = positions if new is None else positions[~torch.isin(positions, new)]
        problem = self.pattern.problem(positions, self.grid) or held.refusal(self, kept)
        if problem:
            raise ValueError(problem)
        return self._move(positions.clone(), new)

    def problem_with(self, positions: Tensor) -> str | None:
        """Why the layer cannot store the blocks at these positions, by its pattern or by what is frozen, or None."""
        return self.pattern.problem(positions, self.grid) or held.refusal(self, positions)

    def enlarge(self, capacity: int) -> None:
        """Makes room for `capacity` blocks (never less than there is), in place: new slots are dead and hold 0.

        What follows the layer grows too; an optimizer's state does not (`spfde.topology.reserve` sees to that).
        """
        more = capacity - self.values.shape[0]
        if more <= 0:
            return
        positions, grad = self.positions(), self.values.grad
        self.values.grad = None
        self.values.data = longer(self.values.data, more)
        self.values.grad = None if grad is None else longer(grad, more)
        self.col = F.pad(self.col, (0, more))
        self._build_plan(positions)
        self._lineage.enlarged(capacity)

    def _move(self, positions: Tensor, new: Tensor | None = None) -> Tensor:
        """`move_to` for positions that are right, without a question to the device; the layer keeps them."""
        self._lineage.leave()
        return self._carry_to(positions, new)

    @torch.no_grad()
    def _carry_to(self, positions: Tensor, new: Tensor | None = None) -> Tensor:
        capacity, old = self.values.shape[0], self.plan.positions
        source = torch.full((capacity,), -1, dtype=torch.int64, device=positions.device)
        if old.numel():
            slot = torch.searchsorted(old, positions).clamp_(max=old.numel() - 1)
            kept = old[slot] == positions
            if new is not None:
                kept &= ~torch.isin(positions, new)
            source[: positions.numel()] = torch.where(kept, slot, -1)
        index = index_from_positions(positions, *self.grid.shape, capacity)
        self.row_ptr.copy_(index.row_ptr)
        self.col.copy_(index.col)
        permute(self.values.data, source)
        if self.values.grad is not None:
            permute(self.values.grad, source)
        self._build_plan(positions)
        self._lineage.changed(positions)
        return source

    def check_values(self, name: str = "the layer") -> None:
        """Refuses a layer whose values are not its own, so that a move could not write them.

        Raises:
            ValueError: something computes them (a parametrization, pruning, weight norm).
        """
        if not isinstance(self._parameters.get("values"), nn.Parameter):
            raise ValueError(
                f"expected the values of {name!r} to be its Parameter, got computed ones (parametrize, prune or "
                "weight_norm on 'values'), try removing that first"
            )

    # ---- copies, and others who write the index ---------------------------------------------------------------------

    def index_read(self, unwritten: bool) -> bool:
        """Mends or refuses an index, or values, that were written in place; whether to look again next time."""
        if not unwritten:
            self._lineage.mend(self)
        self._lineage.check(self, unwritten)
        return self._lineage.suspected is not None

    def index_followed(self) -> None:
        """Others wrote another index, which the plan follows."""
        self._lineage.reread()
        self._lineage.changed(self._plan.positions)

    # ---- torch.nn.Module ------------------------------------------------------------------------------------------

    def __delattr__(self, name: str) -> None:
        if name in ("values", "row_ptr", "col") and _caller_parametrizes():
            raise ValueError(
                f"expected {name!r} to stay as it is, which masks move slot by slot, got a parametrization of it, try "
                "parametrizing the dense layer and excluding it from spfde.sparsify"
            )
        super().__delattr__(name)

    def _apply(self, fn, recurse: bool = True):
        before = self.row_ptr, self.col
        super()._apply(fn, recurse)
        if self.row_ptr is not before[0] or self.col is not before[1]:
            self._build_plan()
        self._lineage.converted()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lineage.begin(self)
        self._build_plan()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        dense = state_dict.get(prefix + "weight")
        if dense is not None and prefix + "values" not in state_dict:
            state_dict = dict(state_dict)
            del state_dict[prefix + "weight"]
            problem = index_from_dense(self, dense, state_dict, prefix)
        else:
            problem = check_loaded(self, state_dict, prefix)
        problem = problem or self._lineage.check_loaded(self, state_dict.get(prefix + "values"))
        index = (state_dict.get(prefix + part) for part in ("row_ptr", "col"))
        problem = problem or held.refusal_of_state(self, *index)
        if problem:
            errors.append(f"{prefix.rstrip('.') or 'layer'}: {problem}")
            return
        before = self._plan.positions.clone() if self._plan is not None and self._lineage.led else None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._build_plan()
        self._lineage.reread()
        if before is not None and not torch.equal(before, self.positions()):
            self._lineage.changed(self.positions())

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if self._plan is not None and self._lineage.origin is not None:
            self.plan.follow()  # an average's index may need mending
        super()._save_to_state_dict(destination, prefix, keep_vars)


def longer(tensor: Tensor, more: int) -> Tensor:
    """A tensor shaped like values with as many slots more, of 0."""
    return F.pad(tensor, (0,) * (2 * tensor.dim() - 1) + (more,))


def _caller_parametrizes() -> bool:
    """Whether it is `register_parametrization` that deletes an attribute, before it has changed anything."""
    return sys._getframe(2).f_globals.get("__name__") == parametrize.__name__
