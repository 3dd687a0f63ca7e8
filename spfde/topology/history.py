"""What updates did to one layer: which blocks were ever stored, and the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spfde.nn import SparseLayer

_EVER, _FIRST = 1, 2


class Shift(NamedTuple):
    """One change of a layer: blocks stored before and after; new: those not stored before, a count [] on its device."""

    before: int
    after: int
    new: Tensor


class History:
    """A byte for every block (was it ever stored, was it in the first mask), the last update's counts, all counts."""

    def __init__(
        self, flags: Tensor, over_time: list[tuple[int, int]], updates: int, before: int, survived: int, grown: int
    ) -> None:
        self.flags, self.over_time = flags, over_time
        self.updates, self.before, self.survived, self.grown = updates, before, survived, grown

    @classmethod
    def start(cls, layer: SparseLayer) -> History:
        """Before any update."""
        flags = torch.zeros(layer.grid.size, dtype=torch.uint8, device=layer.values.device)
        flags[layer.positions()] = _EVER | _FIRST
        return cls(flags, [(0, layer.nnz)], 0, layer.nnz, layer.nnz, 0)

    @classmethod
    def loaded(cls, state: Mapping[str, Any], device: torch.device) -> History:
        """From `state_dict`, for a layer on this device."""
        # A state that was saved before counts were kept over time starts them anew.
        over_time = [tuple(point) for point in state.get("over_time", [(0, sum(state["counts"][2:]))])]
        return cls(state["flags"].to(device, copy=True), over_time, *state["counts"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        counts = [self.updates, self.before, self.survived, self.grown]
        return {"flags": self.flags.cpu().clone(), "over_time": list(self.over_time), "counts": counts}

    def see(self, positions: Tensor) -> None:
        """What is stored now was stored once."""
        self.flags = self.flags.to(positions.device)  # the layer may have gone elsewhere
        self.flags[positions] |= _EVER

    def record(self, step: int, before: int, nnz: int, new: int) -> None:
        """One update after `step`: of `before` stored blocks to `nnz`, `new` among them not stored before."""
        self.updates += 1
        if nnz != self.over_time[-1][1]:
            self.over_time.append((step, nnz))
        self.before, self.survived, self.grown = before, nnz - new, new

    @property
    def first(self) -> Tensor:
        """Which blocks were in the first mask: bool [grid size]."""
        return (self.flags & _FIRST) > 0

    @property
    def ever(self) -> int:
        """How many blocks were ever stored."""
        return int((self.flags & _EVER).sum())
