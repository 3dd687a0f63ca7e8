"""Draws speed-up against sparsity from the JSON that layers.py writes, of a CPU or a GPU.

python benchmarks/plot.py runs/bench/layers.json [runs/bench/layers.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from record import Cell, Record
from targets import GPU_TARGETS, asked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#14181f", "#586173", "#dde1e7"
COLOURS = ("#0a66c2", "#c2410c", "#0f766e", "#7c3aed", "#65a30d", "#be185d")
GPU_PARTS = ("forward", "input gradient", "weight gradient", "step")
Points = Mapping[float, float]
PEERS = {"torch csr": ":", "sparseprop": "--"}  # dash patterns
STYLE = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def draw(record: Record) -> Figure:
    """A row of panels per pattern (CPU) or layer (GPU): lines per layer or block, break-even, targets, peers in grey.

    Raises:
        SystemExit: nothing of ours was timed beside a dense layer.
    """
    import matplotlib
    from matplotlib.figure import Figure

    on_gpu = "gpu" in record.machine
    cells = [c for c in record.cells if c.ours in c.seconds and (not on_gpu or c.kind == "linear") and _drawn(c)]
    if not cells:
        raise SystemExit(
            "expected cells with a sparse kernel beside a dense layer, got none, try layers.py with fewer filters"
        )
    rows, columns, panels = _gpu_panels(cells) if on_gpu else _cpu_panels(cells)
    sparsities = sorted({cell.sparsity for cell in cells})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.4, 3.5 * rows + 0.5), dpi=150)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _panel(axes, panel, sparsities)
        for row in grid:
            row[0].set_ylabel("speed-up over the best dense layer")
        for axes in grid[-1]:
            axes.set_xlabel("sparsity")
        figure.suptitle(_caption(record.machine), color=MUTED, fontsize=9, x=0.01, ha="left")
    return figure


@dataclass(frozen=True)
class Panel:
    """A part of a step: points by sparsity of every line, of the peers' means and of the targets."""

    title: str
    lines: Mapping[str, Points]
    peers: Mapping[str, Points] = field(default_factory=dict)
    targets: Points = field(default_factory=dict)


def _cpu_panels(cells: Sequence[Cell]) -> tuple[int, int, list[Panel]]:
    """A row per pattern, a panel per group of layers, a line per layer."""
    patterns = list(dict.fromkeys(cell.pattern for cell in cells))
    groups = list(dict.fromkeys(cell.group for cell in cells))
    panels = []
    for pattern in patterns:
        for group in groups:
            some = [cell for cell in cells if (cell.pattern, cell.group) == (pattern, group)]
            lines = _lines(some, "step", lambda cell: cell.layer.removeprefix(f"{cell.group} "))
            targets = {c.sparsity: aim for c in some if (aim := asked(c.pattern, c.kind, c.sparsity)) is not None}
            peers = {name: points for name in PEERS if (points := _means(some, name))}
            panels.append(Panel(f"{group}, {pattern}", lines, peers, targets))
    return len(patterns), len(groups), panels


def _gpu_panels(cells: Sequence[Cell]) -> tuple[int, int, list[Panel]]:
    """A row per layer and precision, a panel per part, a line per pattern."""
    rows = list(dict.fromkeys((cell.layer, cell.dtype) for cell in cells))
    panels = []
    for layer, dtype in rows:
        some = [cell for cell in cells if (cell.layer, cell.dtype) == (layer, dtype)]
        for part in GPU_PARTS:
            here = {cell.name for cell in some}
            targets = {
                t.case.sparsity: t.speedup
                for t in GPU_TARGETS
                if str(t.case) in here and t.part == part and t.over is None
            }
            panels.append(Panel(f"{layer} {dtype}, {part}", _lines(some, part, lambda cell: cell.pattern), {}, targets))
    return len(rows), len(GPU_PARTS), panels


def _drawn(cell: Cell) -> bool:
    return any(cell.speedup(part=part) is not None for part in GPU_PARTS)


def _lines(cells: Sequence[Cell], part: str, name: Callable[[Cell], str]) -> dict[str, Points]:
    found: dict[str, dict[float, float]] = {}
    for cell in cells:
        if (speedup := cell.speedup(part=part)) is not None:
            found.setdefault(name(cell), {})[cell.sparsity] = speedup
    return found


def _means(cells: Sequence[Cell], name: str) -> Points:
    """Geometric mean of the speed-up over the layers, by sparsity."""
    found: dict[float, list[float]] = {}
    for cell in cells:
        if (speedup := cell.speedup(name)) is not None:
            found.setdefault(cell.sparsity, []).append(speedup)
    return {sparsity: geometric_mean(values) for sparsity, values in found.items()}


def _caption(about: Mapping[str, Any]) -> str:
    machine = about.get("gpu") or f"{about['cpu']}, threads: {about['threads']}, {about['isa']}"
    return f"{machine} · torch {about['torch']} · spfde {about['spfde']} · {str(about['date'])[:10]}"


def _panel(axes: Axes, panel: Panel, sparsities: Sequence[float]) -> None:
    axes.set_title(panel.title)
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.25, 32)
    axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16, 32], ["¼x", "½x", "1x", "2x", "4x", "8x", "16x", "32x"])
    # Equal steps: 60% to 98% on a linear axis would crowd where it matters.
    axes.set_xticks(range(len(sparsities)), [f"{sparsity:.0%}" for sparsity in sparsities])
    axes.set_xlim(-0.3, len(sparsities) - 0.7)
    axes.axhline(1, color=INK, linewidth=1.2)
    right = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "top"}
    axes.annotate("break-even", (1, 1), (-2, -3), color=MUTED, fontsize=8, **right)

    def line(points: Points, **style: Any) -> None:
        known = sorted(points)
        axes.plot([sparsities.index(s) for s in known], [points[s] for s in known], **style)

    for name, points in panel.peers.items():
        line(points, color="#9aa3b0", linestyle=PEERS[name], linewidth=1.3, label=f"{name} (mean)")
    for index, (name, points) in enumerate(panel.lines.items()):
        line(points, color=COLOURS[index % len(COLOURS)], marker="o", markersize=3.5, label=name)
    if panel.targets:
        line(panel.targets, color=INK, linestyle="", marker="_", markersize=14, markeredgewidth=2, label="target")
    if panel.lines:
        axes.legend(loc="upper left", fontsize=7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a PNG or SVG of speed-up against sparsity."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", type=Path, help="what layers.py wrote")
    parser.add_argument("image", type=Path, nargs="?", help=".png or .svg; beside the JSON if not given")
    given = parser.parse_args(arguments)
    draw(Record.read(given.json)).savefig(given.image or given.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
