"""Draws speed-up against density, a line per block, from the JSON that gpu.run writes.

PYTHONPATH=.:benchmarks python -m gpu.plot RECORD.json [image.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpu.cases import BLOCKS, TARGETS, Case
from gpu.record import Cell, Record
from plot import COLOURS, INK, MUTED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = ("forward", "input gradient", "weight gradient", "step")
Layer = tuple[int, int, str]  # inputs, outputs, precision


def draw(record: Record) -> Figure:
    """A row per linear layer, a panel per part: a line per block, the break-even line, what the targets ask for."""
    import matplotlib
    from matplotlib.figure import Figure

    cells = [cell for cell in record.cells if isinstance(cell.case, Case) and cell.case.kind == "linear"]
    cells = [cell for cell in cells if any(cell.speedup(part) is not None for part in PARTS)]
    if not cells:
        raise SystemExit(
            "expected a record with linear layers beside dense ones, got none, try gpu.run without --cases"
        )
    layers = list(dict.fromkeys(_layer(cell.case) for cell in cells))
    densities = sorted({cell.case.density for cell in cells}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(PARTS) + 0.4, 3.2 * len(layers) + 0.5), dpi=150)
        panels = figure.subplots(len(layers), len(PARTS), sharex=True, sharey=True, squeeze=False)
        for row, layer in zip(panels, layers, strict=True):
            for axes, part in zip(row, PARTS, strict=True):
                _panel(axes, [cell for cell in cells if _layer(cell.case) == layer], part, densities)
                axes.set_title(f"{layer[0]}x{layer[1]} {layer[2]}, {part}")
            row[0].set_ylabel("speed-up over cuBLAS")
        panels[0][0].legend(loc="upper left", fontsize=7)
        for axes in panels[-1]:
            axes.set_xlabel("density")
        about = f"{record.machine['gpu']} · {str(record.machine['date'])[:10]}"
        figure.suptitle(about, color=MUTED, fontsize=9, x=0.01, ha="left")
    return figure


def _layer(case: Case) -> Layer:
    return case.inputs, case.outputs, case.dtype


def _panel(axes: Axes, cells: Sequence[Cell], part: str, densities: Sequence[float]) -> None:
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.25, 16)
    axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16], ["¼x", "½x", "1x", "2x", "4x", "8x", "16x"])
    # Equal steps: on a linear axis low densities, where it matters, would crowd.
    axes.set_xticks(range(len(densities)), [f"{density:g}" for density in densities])
    axes.axhline(1, color=INK, linewidth=1.2)
    for colour, block in zip(COLOURS, BLOCKS, strict=False):
        points = {cell.case.density: cell.speedup(part) for cell in cells if cell.case.block == block}
        known = [density for density in densities if points.get(density) is not None]
        style = {"color": colour, "marker": "o", "markersize": 3.5, "label": f"block {block}"}
        axes.plot([densities.index(density) for density in known], [points[density] for density in known], **style)
        for target in TARGETS:
            here = any(cell.case == target.case for cell in cells) and target.case.block == block
            if here and target.part == part and target.over is None:
                style = {"color": colour, "marker": "_", "markersize": 14, "markeredgewidth": 2}
                axes.plot([densities.index(target.case.density)], [target.speedup], **style)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a PNG or SVG of speed-up against density."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", type=Path, help="what gpu.run wrote")
    parser.add_argument("image", type=Path, nargs="?", help=".png or .svg; beside the JSON if not given")
    given = parser.parse_args(arguments)
    draw(Record.read(given.json)).savefig(given.image or given.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
