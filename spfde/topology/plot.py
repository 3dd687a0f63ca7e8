"""Draws a report: the sparsity of every layer over time, and where its weights are."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from spfde.profiling.plot import MUTED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spfde.topology.history import Report

COLUMNS, TOP = 4, 2.6  # maps in a row; inches of the panel above them
LEGEND = 12  # layers that still fit a legend


def draw(report: Report) -> Figure:
    """A panel of sparsity against optimizer steps, one line a layer, above a map of each layer.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "expected matplotlib, which draws the report, got no such module, try pip install spfde[report]"
        ) from error
    maps = {name: cells.numpy() for name, cells in report.maps.items() if cells.numel()}
    rows = max(1, ceil(len(maps) / COLUMNS))
    # A Figure of its own: pyplot's state and the caller's backend stay as they are.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, TOP + 2.1 * rows), dpi=150)
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
