"""Draws the judging figure of every arm against its seconds, with error bars, from what proof.py wrote.

python benchmarks/proof_plot.py FILE.jsonl [FILE.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from plot import COLOURS, INK, MUTED, STYLE
from proof import read
from proof_table import Row, around, is_plain

from spfde.train.task import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(found: Sequence[Row], judged: str) -> Figure:
    """Points of arms, a line through dense training of more and more epochs; what is above it pays.

    Raises:
        SystemExit: no arm was both trained and timed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    timed = [row for row in found if row.seconds]
    if not timed:
        raise SystemExit("expected arms that were trained and timed, got none, try proof.py with --timing 3")
    task = next(task for task in TASKS.values() if task.metric.split()[-1] == judged.split()[-1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5), dpi=150)
        axes = figure.subplots()
        plain = sorted((row for row in timed if is_plain(row.arm)), key=lambda row: row.seconds)
        axes.plot([r.seconds for r in plain], [_mean(r) for r in plain], color=MUTED, zorder=1, label="dense")
        for number, row in enumerate(timed):
            colour = MUTED if is_plain(row.arm) else COLOURS[number % len(COLOURS)]
            bar = around(list(row.figures.values())) if len(row.figures) > 1 else None
            axes.errorbar(row.seconds, _mean(row), bar, fmt="o", markersize=4, capsize=2, color=colour)
            axes.annotate(row.arm, (row.seconds, _mean(row)), (4, 3), textcoords="offset points", fontsize=7, color=INK)
        if not task.higher:
            axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("training seconds; bars: 95% confidence of the mean over seeds")
        axes.set_ylabel(judged)
    return figure


def _mean(row: Row) -> float:
    return mean(row.figures.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="what proof.py wrote")
    parser.add_argument("out", type=Path, nargs="?", help="default: FILE.png")
    given = parser.parse_args(arguments)
    out = given.out or given.file.with_suffix(".png")
    draw(*read(given.file)).savefig(out)
    print(out)


if __name__ == "__main__":
    main()
