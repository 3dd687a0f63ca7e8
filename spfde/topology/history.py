"""What updates did to a layer: survival, growth, exploration, overlap, degrees, and where its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.nn import SparseLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EVER, _FIRST = 1, 2
CELLS = 64  # of a map, along each side


@dataclass(frozen=True)
class LayerReport:
    """One layer's topology so far; counts in blocks (single weights unless the pattern says otherwise).

    size: blocks of the dense weight. nnz: stored now. updates: changes so far. survived, born: in the last one.
    explored: R_s, the share of the blocks that was ever stored. overlap_last: share of the mask before the last update
    that is still there. overlap_first: the same for the first mask. fan_in, fan_out: stored weights per output and per
    input channel, as (least, mean, most). empty_outputs, empty_inputs: how many have none. over_time: (optimizer step,
    stored blocks) of the first mask and of every update that changed the count.
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
    over_time: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """`Topology.report()`: every layer, by name, and R_s of all of them together.

    step: of the optimizer, now. maps: where each layer's weights are, the share of stored ones, in [0, 1], in every
    cell of at most CELLS rows of outputs and CELLS columns of input channels.
    """

    layers: Mapping[str, LayerReport]
    explored: float
    step: int
    maps: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, layers: Mapping[str, SparseLayer], history: Mapping[str, History], explored: float, step: int
    ) -> Report:
        """The report on these layers."""
        rows = {name: history[name].row(layer) for name, layer in layers.items()}
        return cls(rows, explored, step, {name: map_of(layer) for name, layer in layers.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file; the maps are left out."""
        rows = {name: asdict(row) for name, row in self.layers.items()}
        return {"layers": rows, "explored": self.explored, "step": self.step}

    def scalars(self) -> dict[str, float]:
        """A number for each chart of a logger: `writer.add_scalar(name, value, report.step)`."""
        out = {"explored": self.explored}
        for name, row in self.layers.items():
            out |= {
                f"stored/{name}": _share(row.nnz, row.size),
                f"explored/{name}": row.explored,
                f"kept by the last update/{name}": row.overlap_last,
                f"kept of the first mask/{name}": row.overlap_first,
            }
        return out

    def figure(self) -> Figure:
        """The sparsity of every layer over time, and its map: for a page, or for `writer.add_figure`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from spfde.topology.plot import draw

        return draw(self)

    def plot(self, path: str | Path) -> Path:
        """Writes the figure to a file, as its suffix says (.png, .svg, .pdf), and returns where.

        Raises:
            ImportError: matplotlib is not installed.
        """
        path = Path(path)
        self.figure().savefig(path)
        return path

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


class Shift(NamedTuple):
    """One change of a layer: blocks stored before and after; born: how many of them are new, [] on its device."""

    before: int
    after: int
    born: Tensor


class History:
    """A byte for every block (was it ever stored, was it in the first mask), the last update's counts, all counts."""

    def __init__(
        self, flags: Tensor, over_time: list[tuple[int, int]], updates: int, before: int, survived: int, born: int
    ) -> None:
        self.flags, self.over_time = flags, over_time
        self.updates, self.before, self.survived, self.born_last = updates, before, survived, born

    @classmethod
    def born(cls, layer: SparseLayer) -> History:
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
        counts = [self.updates, self.before, self.survived, self.born_last]
        return {"flags": self.flags.cpu().clone(), "over_time": list(self.over_time), "counts": counts}

    def see(self, positions: Tensor) -> None:
        """What is stored now was stored once."""
        self.flags = self.flags.to(positions.device)  # the layer may have gone elsewhere
        self.flags[positions] |= _EVER

    def record(self, step: int, before: int, nnz: int, born: int) -> None:
        """One update after `step`: of `before` stored blocks to `nnz`, `born` among them new."""
        self.updates += 1
        if nnz != self.over_time[-1][1]:
            self.over_time.append((step, nnz))
        self.before, self.survived, self.born_last = before, nnz - born, born

    @property
    def ever(self) -> int:
        """How many blocks were ever stored."""
        return int((self.flags & _EVER).sum())

    def row(self, layer: SparseLayer) -> LayerReport:
        """The layer's line of the report."""
        first = (self.flags & _FIRST) > 0
        mask = _by_tap(layer)
        fan_in, fan_out = mask.sum((1, 2)), mask.sum((0, 2))
        return LayerReport(
            size=layer.grid.size,
            nnz=layer.nnz,
            updates=self.updates,
            survived=self.survived,
            born=self.born_last,
            explored=_share(self.ever, layer.grid.size),
            overlap_last=_share(self.survived, self.before),
            overlap_first=_share(int(first[layer.positions().to(first.device)].sum()), int(first.sum())),
            fan_in=_spread(fan_in),
            fan_out=_spread(fan_out),
            empty_outputs=int((fan_in == 0).sum()),
            empty_inputs=int((fan_out == 0).sum()),
            over_time=tuple(self.over_time),
        )


def map_of(layer: SparseLayer) -> Tensor:
    """Share of stored weights [outputs, channels] in cells of the dense weight, at most CELLS along each side."""
    stored = _by_tap(layer).float().mean(2)
    cells = [min(CELLS, size) for size in stored.shape]
    return F.adaptive_avg_pool2d(stored.unsqueeze(0), cells)[0].cpu() if min(cells) else stored.cpu()


def _by_tap(layer: SparseLayer) -> Tensor:
    """The mask [outputs, channels, taps]."""
    return layer.mask().view(*layer.shape[:2], prod(layer.shape[2:]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _spread(degree: Tensor) -> tuple[int, float, int]:
    if not degree.numel():
        return 0, 0.0, 0
    return int(degree.min()), float(degree.double().mean()), int(degree.max())
