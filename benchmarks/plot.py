"""Draws speed-up against sparsity from the JSON that layers.py writes.

python benchmarks/plot.py runs/bench/layers.json [runs/bench/layers.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from cases import target
from record import Cell, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#14181f", "#586173", "#dde1e7"
COLOURS = ("#0a66c2", "#c2410c", "#0f766e", "#7c3aed", "#65a30d", "#be185d")
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
    """One panel per pattern and layer group: a line per layer, the break-even line, targets, peers in grey."""
    import matplotlib
    from matplotlib.figure import Figure

    cells = [cell for cell in record.cells if "native" in cell.seconds]
    if not cells:
        raise SystemExit("expected cells with the native kernel, got none, try layers.py without --variants")
    patterns = list(dict.fromkeys(cell.pattern for cell in cells))
    sparsities = sorted({cell.sparsity for cell in cells})
    groups = list(dict.fromkeys(cell.group for cell in cells))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(groups) + 0.4, 3.5 * len(patterns) + 0.5), dpi=150)
        panels = figure.subplots(len(patterns), len(groups), sharex=True, sharey=True, squeeze=False)
        for row, pattern in zip(panels, patterns, strict=True):
            for axes, group in zip(row, groups, strict=True):
                _panel(axes, [cell for cell in cells if (cell.pattern, cell.group) == (pattern, group)], sparsities)
                axes.set_title(f"{group}, {pattern}")
            row[0].set_ylabel("speed-up over the best dense layer")
        for axes in panels[-1]:
            axes.set_xlabel("sparsity")
        figure.suptitle(_caption(record.machine), color=MUTED, fontsize=9, x=0.01, ha="left")
    return figure


def _caption(about: Mapping[str, Any]) -> str:
    machine = f"{about['cpu']}, threads: {about['threads']}, {about['isa']}"
    return f"forward + backward · {machine} · torch {about['torch']} · spfde {about['spfde']} · {about['date'][:10]}"


def _panel(axes: Axes, cells: Sequence[Cell], sparsities: Sequence[float]) -> None:
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.25, 32)
    axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16, 32], ["¼x", "½x", "1x", "2x", "4x", "8x", "16x", "32x"])
    # Equal steps: 60% to 98% on a linear axis would crowd where it matters.
    axes.set_xticks(range(len(sparsities)), [f"{sparsity:.0%}" for sparsity in sparsities])
    axes.set_xlim(-0.3, len(sparsities) - 0.7)
    axes.axhline(1, color=INK, linewidth=1.2)
    right = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "top"}
    axes.annotate("break-even", (1, 1), (-2, -3), color=MUTED, fontsize=8, **right)

    def line(points: Mapping[float, float | None], **style: Any) -> None:
        known = [sparsity for sparsity in sparsities if points.get(sparsity) is not None]
        if known:
            axes.plot([sparsities.index(s) for s in known], [points[s] for s in known], **style)

    for name, dashes in PEERS.items():
        line(_means(cells, name), color="#9aa3b0", linestyle=dashes, linewidth=1.3, label=f"{name} (mean)")
    for index, layer in enumerate(dict.fromkeys(cell.layer for cell in cells)):
        points = {cell.sparsity: cell.speedup("native") for cell in cells if cell.layer == layer}
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "o", "markersize": 3.5}
        line(points, label=layer.removeprefix(f"{cells[0].group} "), **style)
    if cells:
        points = {cell.sparsity: target(cell.pattern, cell.kind, cell.sparsity) for cell in cells}
        line(points, color=INK, linestyle="", marker="_", markersize=14, markeredgewidth=2, label="target")
        axes.legend(loc="upper left", fontsize=7)


def _means(cells: Sequence[Cell], name: str) -> dict[float, float]:
    """Geometric mean of the speed-up over the layers, by sparsity."""
    found: dict[float, list[float]] = {}
    for cell in cells:
        if name in cell.seconds:
            found.setdefault(cell.sparsity, []).append(cell.speedup(name))
    return {sparsity: geometric_mean(values) for sparsity, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a PNG or SVG of speed-up against sparsity."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", type=Path, help="what layers.py wrote")
    parser.add_argument("image", type=Path, nargs="?", help=".png or .svg; beside the JSON if not given")
    given = parser.parse_args(arguments)
    draw(Record.read(given.json)).savefig(given.image or given.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
