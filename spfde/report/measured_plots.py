"""The drawings of files of measurements: speed-up against sparsity, layers x sparsity, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spfde._words import ratio, shortened
from spfde.bench import Record, Row
from spfde.report.markup import Html
from spfde.report.plots import SMALL, draw_figure, series_name
from spfde.report.theme import TOKEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEGMENTS = ("kernels", "levers", "data", "step", "other", "evaluation", "checkpoint")  # colours of a bar's parts
PALE, FULL = 0.12, 0.85  # opacity of a cell that gains nothing, and of one that gains most


def speedups(record: Record, rows: Sequence[Row], name: str) -> Html:
    """Speed-up of a step against sparsity, a line for each subject and pattern, and where nothing is gained."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        found = record.speedup(row)
        if found is not None:
            variant = "" if row.variant == "auto" else f", {row.variant}"
            pattern = "" if row.pattern == "unstructured" else f", {row.pattern}"
            label = f"{row.subject}{variant}{pattern}"
            lines.setdefault(label, []).append((row.sparsity, found.value, found.low, found.high))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (label, points) in enumerate(lines.items()):
            points.sort()
            colour = TOKEN[series_name(index + 1)]
            at, values, low, high = zip(*points, strict=True)
            axes.plot(at, values, color=colour, marker="o", markersize=3.5, label=shortened(label, 34))
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1, color=TOKEN["warn"], linewidth=1, linestyle="--")
        axes.annotate("break-even", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      color=TOKEN["warn"], fontsize=SMALL)  # fmt: skip
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of weights that are zero")
        figure.legend(loc="outside upper left", ncols=1)

    height = 2.9 + 0.2 * len(lines)
    return draw_figure(
        name, height, draw, "Speed-up over the fastest dense variant against sparsity, one line a subject"
    )


def heat_map(record: Record, rows: Sequence[Row], name: str) -> Html:
    """Speed-up of a step of every layer at every sparsity: blue where it gains, orange where it loses."""
    chosen = [row for row in rows if row.variant == "auto" and record.speedup(row)]
    layers = list(dict.fromkeys(row.subject for row in chosen))
    columns = sorted({row.sparsity for row in chosen})
    best = max((record.speedup(row).value for row in chosen), default=1.0)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row in chosen:
            value = record.speedup(row).value
            share = min(1.0, abs(value - 1) / max(best - 1, 1e-9))
            colour = TOKEN["run1" if value > 1 else "run2"]
            left, at = columns.index(row.sparsity) - 0.48, layers.index(row.subject)
            axes.barh(at, 0.96, 0.92, left=left, color=colour, alpha=PALE + (FULL - PALE) * share, linewidth=0)
            axes.text(left + 0.48, at, ratio(value), ha="center", va="center", fontsize=SMALL)
        axes.set_xticks(range(len(columns)), [f"{100 * each:g}%" for each in columns])
        axes.set_yticks(range(len(layers)), [shortened(each, 30) for each in layers], fontsize=SMALL)
        axes.tick_params(length=0, labelcolor=TOKEN["ink"])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel("share of weights that are zero")

    return draw_figure(name, 0.9 + 0.26 * len(layers), draw, "Speed-up of every layer at every sparsity")


def steps(bars: Mapping[str, Mapping[str, float]], name: str) -> Html:
    """Milliseconds of a step, a bar for each variant, cut into its parts."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, part in enumerate(parts):
            colour = TOKEN[SEGMENTS[index % len(SEGMENTS)]]
            lefts = [1e3 * sum(bar.get(p, 0.0) for p in parts[:index]) for bar in bars.values()]
            widths = [1e3 * bar.get(part, 0.0) for bar in bars.values()]
            axes.barh(range(len(bars)), widths, 0.62, left=lefts, color=colour, label=part,
                      alpha=1 - 0.4 * (index // len(SEGMENTS)))  # fmt: skip
        for at, bar in enumerate(bars.values()):
            axes.text(1e3 * sum(bar.values()), at, f" {1e3 * sum(bar.values()):.3g}", va="center", fontsize=SMALL)
        axes.set_yticks(range(len(bars)), [shortened(each, 24) for each in bars], fontsize=SMALL)
        axes.tick_params(axis="y", length=0, labelcolor=TOKEN["ink"])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1, handleheight=1, columnspacing=1.4)

    height = 1.2 + 0.3 * len(bars) + 0.2 * ((len(parts) + 2) // 3)
    return draw_figure(name, height, draw, "Milliseconds of a training step by what they are spent on")
