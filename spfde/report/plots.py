"""The drawings of the page, each a function of the runs; colours are theme tokens, never fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from spfde._words import percent, shortened, size, work
from spfde.freezing import FreezeReport
from spfde.report.markup import Html
from spfde.report.measures import TIME
from spfde.report.run import NOT_TRAINING, Run
from spfde.report.svg import STYLE, inline
from spfde.report.theme import SERIES, TOKEN
from spfde.train.task import CLASSIFICATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.7  # inches; a column of the page, and a phone, where a point is about a pixel
ACCURACIES = (0, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
SMALL = 9  # points; the least that a phone can show
DOTS = 40  # epochs beyond which a line has no dots
LANES = ("freeze", "sieve", "topology")  # kinds of events, top to bottom


def outcome(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """The task's figure against training seconds; the axis is logarithmic in the error of an accuracy."""
    task, metric = runs[0].task, runs[0].metric

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        floor = 0.5 / max(run.samples["test"] for run in runs)
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            values = [epoch.figure for epoch in run.epochs]
            name = f"{shortened(label)}: {metric.text(values[-1])} at the end"
            marker = "o" if len(values) <= DOTS else None
            colour = TOKEN[series_name(index)]
            axes.plot(run.clock, values, _line(run), color=colour, marker=marker, markersize=3.5, label=name)
        if task is CLASSIFICATION:
            _error_scale(axes, floor)
        axes.set_xlim(left=0)
        axes.set_xlabel("training time, seconds")
        axes.legend(loc="lower right" if task.higher else "upper right")

    kind = task.metric.split()[-1]
    return draw_figure(kind, 3.3, draw, f"{task.metric.capitalize()} against training time, one line per run")


def flops(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """FLOPs done so far against training seconds: a flatter line does its work slower."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        most = max(run.work[-1] for run in runs)
        unit = next((u for u in (1e18, 1e15, 1e12, 1e9, 1e6) if most >= u), 1.0)
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            done = [0.0, *(value / unit for value in run.work)]
            name = f"{shortened(label)}: {work(run.work[-1])}"
            axes.plot([0.0, *run.clock], done, _line(run), color=TOKEN[series_name(index)], label=name)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training time, seconds")
        axes.set_title(f"{work(unit).split()[-1]}s", color=TOKEN["muted"], fontweight="normal")
        axes.legend(loc="upper left")

    return draw_figure("flops", 3.3, draw, "Training FLOPs added up, against training time, one line per run")


def epochs(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """Seconds of each epoch as bars, one panel per run, with its events in lanes above the bars."""
    heights = [(0.5 if any(e.events for e in run.epochs) else 0.001, 1.0) for run in runs]

    def draw(figure: Figure) -> None:
        ratios = [height for pair in heights for height in pair]
        panels = figure.subplots(2 * len(runs), 1, sharex=True, gridspec_kw={"height_ratios": ratios})
        top = max(epoch.total_seconds for run in runs for epoch in run.epochs)
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            lanes, bars = panels[2 * index : 2 * index + 2]
            _lanes(lanes, run)
            lanes.set_title(shortened(label, 48))
            _epoch_bars(bars, run, TOKEN[series_name(index)])
            bars.set_ylim(0, top * 1.04)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)

    height = 0.5 + sum(1.35 * (lane + bar) for lane, bar in heights)
    return draw_figure("epochs", height, draw, "Seconds of each epoch, one panel per run, with events above")


def attribution(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """Where the total time of each run went: one stacked bar per run."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = range(len(runs))
        left = [0.0] * len(runs)
        for part in TIME:
            widths = [run.seconds[part] for run in runs]
            axes.barh(rows, widths, 0.6, left, color=TOKEN[part], label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(rows, [shortened(label) for label in labels])
        axes.tick_params(axis="y", length=0, labelcolor=TOKEN["ink"])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("total time, seconds")
        figure.legend(loc="outside upper left", ncols=4, handlelength=1, handleheight=1, columnspacing=1.4)

    title = "Total time of each run by what it was spent on"
    return draw_figure("attribution", 1.35 + 0.42 * len(runs), draw, title)


def layers(run: Run, index: int) -> Html:
    """Sparsity of every weighted layer of a run, coloured by whether its kernel is sparse."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        kinds = (
            (True, TOKEN[series_name(index)], "sparse kernel"),
            (False, TOKEN["evaluation"], "dense kernel"),
        )
        for sparse, colour, name in kinds:
            rows = [i for i, r in enumerate(run.layers) if r.converted and r.runs_sparse == sparse]
            if rows:
                axes.barh(rows, [run.layers[i].sparsity for i in rows], 0.7, color=colour, label=name)
        for i, layer in enumerate(run.layers):
            text = percent(layer.sparsity) if layer.converted else "kept dense"
            axes.text(layer.sparsity + 0.01, i, text, va="center", fontsize=SMALL)
        axes.set_yticks(range(len(run.layers)), [shortened(r.name, end=True) for r in run.layers], fontsize=SMALL)
        axes.tick_params(axis="y", length=0, labelcolor=TOKEN["ink"])
        axes.set_ylim(len(run.layers) - 0.4, -0.6)
        axes.set_xlim(0, 1.12)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0%", "25%", "50%", "75%", "100%"))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of weights that are zero")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1, handleheight=1, columnspacing=1.4)

    height = 1.0 + 0.17 * len(run.layers)
    return draw_figure(f"layers-{index}", height, draw, f"Sparsity of each layer of the {run.method} run")


def sparsity(run: Run, index: int) -> Html:
    """Sparsity of every weighted layer at every epoch: the denser the colour, the more weights are zero."""
    names = list(run.last.layers)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colour = TOKEN[series_name(index)]
        for row, name in enumerate(names):
            for start, stop, value in _stretches([epoch.layers.get(name, 0.0) for epoch in run.epochs]):
                axes.barh(row, stop - start, 0.8, start - 0.5, color=colour, alpha=value)
            axes.text(len(run.epochs) - 0.4, row, percent(run.last.layers[name]), va="center", fontsize=SMALL)
        axes.set_yticks(range(len(names)), [shortened(name, end=True) for name in names], fontsize=SMALL)
        axes.tick_params(axis="y", length=0, labelcolor=TOKEN["ink"])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-0.5, len(run.epochs) * 1.14 - 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick < len(run.epochs)])
        axes.grid(visible=False)
        axes.set_xlabel("epoch; at the right, after the last one")
        for share in (0.25, 0.5, 0.75, 1.0):
            axes.bar(0, 0, color=colour, alpha=share, label=percent(share, 0))
        figure.legend(loc="outside upper left", ncols=4, handlelength=1, handleheight=1, columnspacing=1.4)

    return draw_figure(
        f"sparsity-{index}", 1.0 + 0.17 * len(names), draw, f"Sparsity of each layer of the {run.method} run by epoch"
    )


def freezing(report: FreezeReport, index: int, label: str) -> Html:
    """The timeline of a run's blocks."""

    def draw(figure: Figure) -> None:
        names = tuple(shortened(name, end=True) for name in report.blocks)
        axes = figure.subplots()
        report.draw(axes, TOKEN[series_name(index)], TOKEN["ink"], names=names, size=SMALL)

    height = 0.8 + 0.17 * len(report.blocks)
    return draw_figure(f"freezing-{index}", height, draw, f"When each block of the {label} run was frozen")


def memory(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """Peak memory of every epoch, for the runs that recorded it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            if run.memory:
                values = [epoch.memory / 2**20 for epoch in run.epochs]
                name = f"{shortened(label)}: {size(run.memory)} at most"
                axes.step(range(len(values)), values, where="mid", color=TOKEN[series_name(index)], label=name)
        axes.set_ylim(0, axes.dataLim.y1 * 1.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_title("MiB", color=TOKEN["muted"], fontweight="normal")
        axes.legend(loc="lower right")

    return draw_figure("memory", 3.3, draw, "Peak memory of each epoch, one line per run")


def _line(run: Run) -> str:
    """An unfinished run is dashed."""
    return "-" if run.finished else "--"


def series_name(index: int) -> str:
    """Theme colour of the run at this position; the baseline is at 0."""
    return f"run{index if index < SERIES else 1 + (index - 1) % (SERIES - 1)}"


def draw_figure(name: str, height: float, draw: Callable[[Figure], None], label: str) -> Html:
    """A drawing of the page, as wide as a column; name: unique in the page. ImportError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "expected matplotlib, which draws the report's plots, got no such module, try pip install spfde[report]"
        ) from error
    # A Figure of its own: pyplot's state and the caller's backend stay as they are.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        draw(figure)
        return inline(figure, name, label)


def _error_scale(axes: Axes, floor: float) -> None:
    import numpy as np

    def forward(value: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(1 - np.asarray(value), floor))

    def inverse(value: np.ndarray) -> np.ndarray:
        return 1 - 10 ** -np.asarray(value)

    low, high = axes.dataLim.intervaly
    axes.set_yscale("function", functions=(forward, inverse))
    axes.set_ylim(max(0.0, low - 0.05), min(1 - floor, 1 - 0.7 * (1 - high)))
    bottom, top = axes.get_ylim()
    ticks: list[float] = []
    gap = 0.06 * (forward(top) - forward(bottom))  # labels closer than that would touch
    for value in reversed(ACCURACIES):
        if bottom <= value <= top and (not ticks or forward(ticks[-1]) - forward(value) > gap):
            ticks.append(value)
    axes.set_yticks(ticks, [f"{100 * value:g}%" for value in ticks])
    axes.minorticks_off()


def _stretches(values: Sequence[float]) -> list[tuple[int, int, float]]:
    """Epochs [start, stop) of equal value, to a tenth of a percent: few shapes instead of one per epoch."""
    rounded = [round(value, 3) for value in values]
    starts = [i for i, value in enumerate(rounded) if i == 0 or value != rounded[i - 1]]
    return [(start, stop, rounded[start]) for start, stop in zip(starts, [*starts[1:], len(values)], strict=True)]


def _epoch_bars(axes: Axes, run: Run, colour: str) -> None:
    places = [epoch.epoch for epoch in run.epochs]
    training = [epoch.training_seconds for epoch in run.epochs]
    rest = [sum(epoch.seconds[part] for part in NOT_TRAINING) for epoch in run.epochs]
    axes.bar(places, training, 0.8, color=colour)
    axes.bar(places, rest, 0.8, training, color=TOKEN["checkpoint"])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("seconds")


def _lanes(axes: Axes, run: Run) -> None:
    for row, kind in enumerate(LANES):
        places = [epoch.epoch for epoch in run.epochs if any(e.kind == kind for e in epoch.events)]
        if places:
            axes.plot(places, [row] * len(places), "s", color=TOKEN["ink"], markersize=3.5)
    axes.set_ylim(len(LANES) - 0.4, -0.6)
    axes.set_yticks(range(len(LANES)), LANES, fontsize=SMALL)
    axes.tick_params(axis="both", length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", visible=False)
    if not any(epoch.events for epoch in run.epochs):
        axes.set_yticks(())
