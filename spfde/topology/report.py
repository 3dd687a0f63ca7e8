"""A topology's report: survival, growth, exploration, overlap and degrees of every layer, and where its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from spfde._figures import MUTED, STYLE, matplotlib_for
from spfde.nn import SparseLayer
from spfde.topology.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = 64  # of a map, along each side
COLUMNS, TOP = 4, 2.6  # maps in a row; inches of the panel above them
LEGEND = 12  # layers that still fit a legend


@dataclass(frozen=True)
class LayerReport:
    """One layer's topology so far; counts in blocks (single weights unless the pattern says otherwise).

    size: blocks of the dense weight. nnz: stored now. updates: changes so far. survived, grown: in the last one.
    explored: R_s, the share of the blocks that was ever stored. overlap_last: share of the mask before the last update
    that is still there. overlap_first: the same for the first mask. fan_in, fan_out: stored weights per output and per
    input channel, as (least, mean, most). empty_outputs, empty_inputs: how many have none. over_time: (optimizer step,
    stored blocks) of the first mask and of every update that changed the count.
    """

    size: int
    nnz: int
    updates: int
    survived: int
    grown: int
    explored: float
    overlap_last: float
    overlap_first: float
    fan_in: tuple[int, float, int]
    fan_out: tuple[int, float, int]
    empty_outputs: int
    empty_inputs: int
    over_time: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layer: SparseLayer, history: History) -> LayerReport:
        """The report on one layer."""
        first = history.first
        mask = _by_tap(layer)
        fan_in, fan_out = mask.sum((1, 2)), mask.sum((0, 2))
        return cls(
            size=layer.grid.size,
            nnz=layer.nnz,
            updates=history.updates,
            survived=history.survived,
            grown=history.grown,
            explored=_share(history.ever, layer.grid.size),
            overlap_last=_share(history.survived, history.before),
            overlap_first=_share(int(first[layer.positions().to(first.device)].sum()), int(first.sum())),
            fan_in=_spread(fan_in),
            fan_out=_spread(fan_out),
            empty_outputs=int((fan_in == 0).sum()),
            empty_inputs=int((fan_out == 0).sum()),
            over_time=tuple(history.over_time),
        )


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
        rows = {name: LayerReport.of(layer, history[name]) for name, layer in layers.items()}
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
        return _draw(self)

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
        lines = [f"{'layer':<{width}}  stored  updates  survived  grown  R_s    kept of first  fan-in"]
        for name, row in self.layers.items():
            least, mean, most = row.fan_in
            lines.append(
                f"{name:<{width}}  {row.nnz:>6}  {row.updates:>7}  {row.survived:>8}  {row.grown:>5}  "
                f"{row.explored:<5.3f}  {row.overlap_first:<13.3f}  {least} / {mean:.1f} / {most}"
            )
        return "\n".join([*lines, f"R_s of the model: {self.explored:.3f}"])


def map_of(layer: SparseLayer) -> Tensor:
    """Share of stored weights [outputs, channels] in cells of the dense weight, at most CELLS along each side."""
    stored = _by_tap(layer).float().mean(2)
    cells = [min(CELLS, size) for size in stored.shape]
    return F.adaptive_avg_pool2d(stored.unsqueeze(0), cells)[0].cpu() if min(cells) else stored.cpu()


def _by_tap(layer: SparseLayer) -> Tensor:
    """The mask [outputs, channels, taps]."""
    return layer.rows_first(layer.mask()).reshape(*layer.shape[:2], prod(layer.shape[2:]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _spread(degree: Tensor) -> tuple[int, float, int]:
    if not degree.numel():
        return 0, 0.0, 0
    return int(degree.min()), float(degree.double().mean()), int(degree.max())


def _draw(report: Report) -> Figure:
    """A panel of sparsity against optimizer steps, one line a layer, above a map of each layer."""
    matplotlib = matplotlib_for("report")
    maps = {name: cells.numpy() for name, cells in report.maps.items() if cells.numel()}
    rows = max(1, ceil(len(maps) / COLUMNS))
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(8, TOP + 2.1 * rows), dpi=150)
        above, below = figure.subfigures(2, 1, height_ratios=(TOP, 2.1 * rows))
        _lines(above.subplots(), report)
        panels = list(below.subplots(rows, COLUMNS, squeeze=False).flat)
        most = max([float(cells.max()) for cells in maps.values()], default=0.0) or 1.0
        image = None
        for axes, (name, cells) in zip(panels, maps.items(), strict=False):
            image = axes.imshow(cells, cmap="Blues", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
            axes.set(title=name or "the layer", xlabel="inputs", ylabel="outputs", xticks=[], yticks=[])
        for axes in panels[len(maps) :]:
            axes.set_visible(False)
        if image is not None:
            below.colorbar(image, ax=below.axes, label="share stored", shrink=0.8)
    return figure


def _lines(axes: Axes, report: Report) -> None:
    for name, row in report.layers.items():
        steps, counts = zip(*row.over_time, (report.step, row.nnz), strict=True)
        sparsity = [1 - count / max(1, row.size) for count in counts]
        axes.step(steps, sparsity, where="post", label=name or "the layer")
    axes.set(xlabel="optimizer step", ylabel="sparsity", title="Sparsity of each layer")
    axes.grid(axis="y", color=MUTED, alpha=0.2)
    if len(report.layers) <= LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
