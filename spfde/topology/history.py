"""What updates did to a layer: survival, growth, exploration, overlap, degrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spfde.nn import SparseLayer

_EVER, _FIRST = 1, 2


@dataclass(frozen=True)
class LayerReport:
    """One layer's topology so far; counts in blocks (single weights unless the pattern says otherwise).

    size: blocks of the dense weight. nnz: stored now. updates: changes so far. survived, born: in the last one.
    explored: R_s, the share of the blocks that was ever stored. overlap_last: share of the mask before the last update
    that is still there. overlap_first: the same for the first mask. fan_in, fan_out: stored weights per output and per
    input channel, as (least, mean, most). empty_outputs, empty_inputs: how many have none.
    """

    size: int
    nnz: int
    updates: int
    survived: int
    born: int
    explored: float
    overlap_last: float
    overlap_first: float
    fan_in: tuple[int, float, int]
    fan_out: tuple[int, float, int]
    empty_outputs: int
    empty_inputs: int


@dataclass(frozen=True)
class Report:
    """`Topology.report()`: every layer, by name, and R_s of all of them together."""

    layers: Mapping[str, LayerReport]
    explored: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a logger or a file."""
        return asdict(self)

    def __str__(self) -> str:
        width = max([5, *map(len, self.layers)])
        lines = [f"{'layer':<{width}}  stored  updates  survived  born  R_s    kept of first  fan-in"]
        for name, row in self.layers.items():
            least, mean, most = row.fan_in
            lines.append(
                f"{name:<{width}}  {row.nnz:>6}  {row.updates:>7}  {row.survived:>8}  {row.born:>4}  "
                f"{row.explored:<5.3f}  {row.overlap_first:<13.3f}  {least} / {mean:.1f} / {most}"
            )
        return "\n".join([*lines, f"R_s of the model: {self.explored:.3f}"])


class History:
    """A byte for every block (was it ever stored, was it in the first mask) and the last update's counts."""

    def __init__(self, flags: Tensor, updates: int, before: int, survived: int, born: int) -> None:
        self.flags = flags
        self.updates, self.before, self.survived, self.born_last = updates, before, survived, born

    @classmethod
    def born(cls, layer: SparseLayer) -> History:
        """Before any update."""
        flags = torch.zeros(layer.grid.size, dtype=torch.uint8)
        flags[layer.positions().cpu()] = _EVER | _FIRST
        return cls(flags, 0, layer.nnz, layer.nnz, 0)

    @classmethod
    def loaded(cls, state: Mapping[str, Any]) -> History:
        """From `state_dict`."""
        return cls(state["flags"].cpu().clone(), *state["counts"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"flags": self.flags.clone(), "counts": [self.updates, self.before, self.survived, self.born_last]}

    def record(self, before: int, nnz: int, newborn: Tensor) -> None:
        """One update: of `before` stored blocks to `nnz`, those at `newborn` [n] among them new."""
        newborn = newborn.to(self.flags.device)
        self.flags[newborn] = self.flags[newborn] | _EVER
        self.updates += 1
        self.before, self.survived, self.born_last = before, nnz - newborn.numel(), newborn.numel()

    @property
    def ever(self) -> int:
        """How many blocks were ever stored."""
        return int((self.flags & _EVER).sum())

    def row(self, layer: SparseLayer) -> LayerReport:
        """The layer's line of the report."""
        first = (self.flags & _FIRST) > 0
        mask = layer.mask().flatten(1)
        taps = mask.shape[1] // max(1, layer.shape[1])
        fan_in, fan_out = mask.sum(1), mask.view(-1, layer.shape[1], taps).sum((0, 2))
        return LayerReport(
            size=layer.grid.size,
            nnz=layer.nnz,
            updates=self.updates,
            survived=self.survived,
            born=self.born_last,
            explored=_share(self.ever, layer.grid.size),
            overlap_last=_share(self.survived, self.before),
            overlap_first=_share(int(first[layer.positions().cpu()].sum()), int(first.sum())),
            fan_in=_spread(fan_in),
            fan_out=_spread(fan_out),
            empty_outputs=int((fan_in == 0).sum()),
            empty_inputs=int((fan_out == 0).sum()),
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _spread(degree: Tensor) -> tuple[int, float, int]:
    if not degree.numel():
        return 0, 0.0, 0
    return int(degree.min()), float(degree.double().mean()), int(degree.max())
