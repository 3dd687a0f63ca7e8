"""What the runs and timings of the proof come to, arm by arm, beside dense training in the same seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from proof_arms import ARMS, DENSE
from proof_timing import Phase, seconds
from study import spread

from spfde.train.optimizer import steps_per_epoch

Runs = Sequence[Mapping[str, Any]]
Timed = Mapping[str, Sequence[Sequence[Phase]]]
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided 95%, of 1, 2, ... degrees
HEAD = "| arm | {metric} | seeds | against dense | FLOPs | seconds | speed-up | over best dense | dense in that time |"


def table(runs: Runs, timed: Timed, batch_size: int) -> str:
    """One line for each arm that was trained or timed, as Markdown.

    The judging figure is a mean and a standard deviation over seeds. "against dense" and "dense in that time" are
    paired differences with their 95% confidence interval: to the dense run, and to what dense training of as many
    epochs as fit into the arm's seconds reached, in the fastest of its variants, between the numbers that were tried.
    """
    by_arm = {name: [run for run in runs if run["arm"] == (ARMS[name].same_as or name)] for name in ARMS}
    took = {name: clock(name, by_arm[name], timed, batch_size) for name in ARMS}
    dense, fastest = took[DENSE], min((took[name] for name in variants() if took[name]), default=None)
    flops = mean(work(run) for run in by_arm[DENSE]) if by_arm[DENSE] else None
    metric = runs[0]["metric"] if runs else "figure"
    lines = [HEAD.format(metric=metric), "|---" * 9 + "|"]
    for name, own in by_arm.items():
        if not own or not (name in timed or any(run["arm"] == name for run in runs)):
            continue
        figures = {run["seed"]: run["figure"] for run in own}
        cells = (
            name,
            spread(list(figures.values()), 4),
            str(len(own)),
            difference(figures, {run["seed"]: run["figure"] for run in by_arm[DENSE]}),
            f"{mean(map(work, own)) / flops:.3f}" if flops else "-",
            f"{took[name]:.0f}" if took[name] else "-",
            f"{dense / took[name]:.2f}x" if dense and took[name] else "-",
            f"{fastest / took[name]:.2f}x" if fastest and took[name] else "-",
            difference(figures, in_time(by_arm, took[name], fastest)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variants() -> list[str]:
    """The dense training, and the arms that do the same in another time."""
    return [name for name, arm in ARMS.items() if DENSE in (name, arm.same_as)]


def work(run: Mapping[str, Any]) -> float:
    """Training FLOPs of a run."""
    return sum(epoch["flops"] for epoch in run["epochs"])


def clock(name: str, own: Runs, timed: Timed, batch_size: int) -> float | None:
    """Training seconds of an arm by the timing pass, mean of its seeds; None where it was not timed or not trained."""
    phases = [phase for rounds in timed.values() for one in rounds for phase in one]
    plain = ARMS[name].fields == ARMS[DENSE].fields
    if not own or not phases or not (plain or name in timed):
        return None
    step = median(phase.dense_step for phase in phases)
    once = median(phase.dense_once for phase in phases)
    totals = []
    for run in own:
        steps = [steps_per_epoch(epoch["samples"], batch_size) for epoch in run["epochs"]]
        totals.append(sum(steps) * step + len(steps) * once if plain else seconds(timed[name], steps, step))
    return mean(totals)


def in_time(by_arm: Mapping[str, Runs], took: float | None, fastest: float | None) -> dict[int, float]:
    """By seed, what dense training reached whose whole schedule fits into `took` seconds; {} where that is not known.

    Between two numbers of epochs that were tried it is on the straight line, beyond them nowhere.
    """
    if not took or not fastest:
        return {}
    curves: dict[int, dict[float, float]] = {}
    for name, arm in ARMS.items():
        for run in by_arm[name] if arm.fields == ARMS[DENSE].fields else ():
            curves.setdefault(run["seed"], {})[len(run["epochs"])] = run["figure"]
    found = {}
    for seed, curve in curves.items():
        epochs = sorted(curve)
        wanted = took / fastest * epochs[-1]
        if epochs[0] <= wanted <= epochs[-1]:
            found[seed] = float(np.interp(wanted, epochs, [curve[count] for count in epochs]))
    return found


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """What the same seeds differ by: mean and 95% confidence interval, of one seed the difference alone."""
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return f"{pairs[0]:+.4f}" if pairs else "-"
    around = T95[min(len(pairs) - 1, len(T95)) - 1] * stdev(pairs) / len(pairs) ** 0.5
    return f"{mean(pairs):+.4f} ± {around:.4f}"
