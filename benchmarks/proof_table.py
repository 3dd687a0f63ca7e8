"""What the runs and timings of the proof come to, arm by arm, beside dense training in the same seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean, median, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
from proof_arms import ARMS, DENSE
from proof_timing import Phase, seconds
from study import spread

from spfde.train.optimizer import steps_per_epoch
from spfde.train.task import TASKS, Task

Runs = Sequence[Mapping[str, Any]]
Timed = Mapping[str, Sequence[Sequence[Phase]]]
Figures = Mapping[int, float]  # by seed
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided 95%, of 1, 2, ... degrees
NEAR = 0.003  # of the dense figure, by which an epoch may miss it to count as having reached it
COLUMNS = (
    *("seeds", "against dense", "FLOPs", "seconds", "speed-up", "over best dense"),
    *("dense in that time", "to 0.3% of dense"),
)


@dataclass(frozen=True)
class Row:
    """An arm: its judging figure by seed, the same against dense, FLOPs as a share of the dense run's, and seconds.

    seconds: of a whole training, by the timing pass. near: until the figure was within 0.3% of the dense run's, mean of
    the seeds; None where one never was. in_time: by seed, what dense training in these seconds reached.
    """

    arm: str
    figures: Figures
    against: Figures
    flops: float | None
    seconds: float | None
    near: float | None
    in_time: Figures


def rows(runs: Runs, timed: Timed, batch_size: int) -> list[Row]:
    """The arms that were trained, and those that differ from one of these only in their time."""
    by_arm = {name: [run for run in runs if run["arm"] == (arm.same_as or name)] for name, arm in ARMS.items()}
    clocks = {name: [epochs(name, run, timed, batch_size) for run in own] for name, own in by_arm.items()}
    took = {name: mean(map(sum, own)) for name, own in clocks.items() if own and None not in own}
    fastest = min((took[name] for name in took if DENSE in (name, ARMS[name].same_as)), default=None)
    dense = figures(by_arm[DENSE])
    dense_work = mean(map(work, by_arm[DENSE])) if dense else None
    found = []
    for name, own in by_arm.items():
        if not own or (ARMS[name].same_as and name not in timed):
            continue
        mine = figures(own)
        found.append(
            Row(
                arm=name,
                figures=mine,
                against={seed: value - dense[seed] for seed, value in mine.items() if seed in dense},
                flops=mean(map(work, own)) / dense_work if dense_work else None,
                seconds=took.get(name),
                near=near(own, clocks[name], dense) if name in took else None,
                in_time=in_time(by_arm, took[name], fastest) if name in took and fastest else {},
            )
        )
    return found


def table(found: Sequence[Row], judged: str) -> str:
    """The rows as Markdown: means over seeds with their standard deviation, differences with confidence intervals.

    judged: what the judging figure is called. "against dense" and "dense in that time" are its differences, paired by
    seed: to the dense run, and to what dense training of as many epochs as fit into the arm's seconds reached.
    """
    took = {row.arm: row.seconds for row in found if row.seconds}
    fastest = min((took[name] for name in took if DENSE in (name, ARMS[name].same_as)), default=None)
    lines = [f"| arm | {judged} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in found:
        beside = {seed: value - row.in_time[seed] for seed, value in row.figures.items() if seed in row.in_time}
        cells = (
            row.arm,
            spread(list(row.figures.values()), 4),
            str(len(row.figures)),
            interval(row.against),
            f"{row.flops:.3f}" if row.flops else "-",
            f"{row.seconds:.0f}" if row.seconds else "-",
            f"{took[DENSE] / row.seconds:.2f}x" if row.seconds and DENSE in took else "-",
            f"{fastest / row.seconds:.2f}x" if row.seconds and fastest else "-",
            interval(beside),
            f"{row.near:.0f}" if row.near else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(own: Runs) -> dict[int, float]:
    """The judging figure after the last epoch, by seed."""
    return {run["seed"]: run["figure"] for run in own}


def work(run: Mapping[str, Any]) -> float:
    """Training FLOPs of a run."""
    return sum(epoch["flops"] for epoch in run["epochs"])


def is_plain(name: str) -> bool:
    """Whether an arm is the dense training, of all or of fewer epochs, as it is timed beside every other."""
    return ARMS[name].fields == ARMS[DENSE].fields and ARMS[name].rate == 1


def epochs(name: str, run: Mapping[str, Any], timed: Timed, batch_size: int) -> list[float] | None:
    """Training seconds of each epoch of a run by the timing pass, None where its arm was not timed."""
    phases = [phase for rounds in timed.values() for one in rounds for phase in one]
    if not phases or not (is_plain(name) or name in timed):
        return None
    step = median(phase.dense_step for phase in phases)
    steps = [steps_per_epoch(epoch["samples"], batch_size) for epoch in run["epochs"]]
    if not is_plain(name):
        return seconds(timed[name], steps, step)
    once = median(phase.dense_once for phase in phases)
    return [count * step + once for count in steps]


def near(own: Runs, clocks: Sequence[Sequence[float]], dense: Figures) -> float | None:
    """Mean seconds to the end of the first epoch within 0.3% of the dense run's figure of the same seed."""
    reached = []
    for run, clock in zip(own, clocks, strict=True):
        task = next(task for task in TASKS.values() if task.metric == run["metric"])
        if run["seed"] not in dense:
            return None
        target = dense[run["seed"]] * (1 - NEAR if task.higher else 1 + NEAR)
        passed = zip(run["epochs"], accumulate(clock), strict=True)
        reached.append(next((at for epoch, at in passed if not task.better(target, figure(task, epoch))), None))
    return None if None in reached else mean(reached)


def figure(task: Task, epoch: Mapping[str, Any]) -> float:
    """The judging figure after an epoch of a run."""
    return task.figure(SimpleNamespace(test_accuracy=epoch["test_accuracy"], test_loss=epoch["test_loss"]))


def in_time(by_arm: Mapping[str, Runs], took: float, fastest: float) -> dict[int, float]:
    """By seed, what dense training reached whose whole schedule fits into `took` seconds; {} beyond what was tried.

    The dense training is the fastest of its variants, `fastest` seconds long. Between two numbers of epochs that were
    tried the figure is on the straight line over the logarithm of epochs.
    """
    curves: dict[int, dict[int, float]] = {}
    for name in filter(is_plain, ARMS):
        for run in by_arm[name]:
            curves.setdefault(run["seed"], {})[len(run["epochs"])] = run["figure"]
    found = {}
    for seed, curve in curves.items():
        tried = sorted(curve)
        wanted = took / fastest * tried[-1]
        if tried[0] <= wanted <= tried[-1]:
            found[seed] = float(np.interp(np.log(wanted), np.log(tried), [curve[count] for count in tried]))
    return found


def around(pairs: Sequence[float]) -> float:
    """Half the 95% confidence interval of a mean of two values or more."""
    return T95[min(len(pairs) - 1, len(T95)) - 1] * stdev(pairs) / len(pairs) ** 0.5


def interval(pairs: Figures) -> str:
    """The mean of differences and its 95% confidence interval, of one the difference alone."""
    values = list(pairs.values())
    if len(values) < 2:
        return f"{values[0]:+.4f}" if values else "-"
    return f"{mean(values):+.4f} ± {around(values):.4f}"
