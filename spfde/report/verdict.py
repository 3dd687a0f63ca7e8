"""What a comparison says, in sentences: also when the news is bad, and how much of it is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spfde._words import count, duration, points, ratio
from spfde.report.run import Run
from spfde.report.settings import differences, shortened
from spfde.train.recipe import all_epochs
from spfde.train.task import CLASSIFICATION

SAME_TIME = 0.02  # times closer than this share are called equal


@dataclass(frozen=True)
class Verdict:
    """What one run shows against the baseline: a headline, then what qualifies it, a line each."""

    headline: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((self.headline, *self.warnings, *self.notes))


def controls(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs that trained as the first one did, but for fewer epochs: what a faster run has to be better than."""
    return tuple(run for run in runs[1:] if shortened(run, runs[0]))


def judged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs that have a verdict: those that are neither baseline nor control; all others where none is."""
    excluded = controls(runs)
    return tuple(run for run in runs[1:] if run not in excluded) or tuple(runs[1:])


def judge(run: Run, label: str, baseline: Run, baseline_label: str, others: Sequence[Run] = ()) -> Verdict:
    """Compare a run with the baseline, and with the control among `others` whose time is nearest to the run's."""
    if not (run.finished and baseline.finished):
        return unfinished(run if not run.finished else baseline, label if not run.finished else baseline_label)
    control = min(others, key=lambda other: abs(math.log(other.training_seconds / run.training_seconds)), default=None)
    headline = f"{label} {_speed(run, baseline, baseline_label)}, {_outcome(run, baseline)}"
    return Verdict(
        headline=f"{headline}{f'; {_control(run, control)}' if control else ''}.",
        notes=(
            f"Training took {duration(run.training_seconds)} against {duration(baseline.training_seconds)}; "
            f"{run.task.metric} is {run.metric.text(run.last.figure)} against "
            f"{run.metric.text(baseline.last.figure)}.",
            *_noise(run, baseline, baseline_label),
            *(_noise(run, control, _shortened(control)) if control else _same_time(run, baseline, baseline_label)),
            *_flops(run, baseline),
            *_dense_layers(run),
        ),
        warnings=_unlike(run, baseline),
    )


def unfinished(run: Run, label: str) -> Verdict:
    """What can be said where a run did not come to its end."""
    done = f"{len(run.epochs)} of {count(all_epochs(run.recipe), 'epoch')}"
    text = f"Its {run.task.metric} is {run.metric.text(run.last.figure)} after {duration(run.training_seconds)}."
    resume = f"Its curves are dashed; spfde train --resume --out {run.path} goes on."
    return Verdict(f"{label} did {done}: nothing can be compared yet.", (text, resume), ())


def alone(run: Run, label: str) -> Verdict:
    """What can be said of a single run."""
    if not run.finished:
        return unfinished(run, label)
    headline = f"{label} reached {_reached(run)} after {duration(run.training_seconds)} of training."
    return Verdict(headline, ("There is no second run here, so this says nothing about speed.",), ())


def _speed(run: Run, baseline: Run, label: str) -> str:
    factor = baseline.training_seconds / run.training_seconds
    if abs(factor - 1) <= SAME_TIME:
        return f"trained no faster than {label}"
    if factor < 1:
        return f"trained slower than {label}, taking {ratio(1 / factor)} as long"
    return f"trained {ratio(factor)} as fast as {label}"


def _reached(run: Run) -> str:
    figure = run.metric.text(run.last.figure)
    return f"{figure} {run.task.metric}" if run.task is CLASSIFICATION else f"a {run.task.metric} of {figure}"


def _outcome(run: Run, baseline: Run) -> str:
    ours, theirs = run.last.figure, baseline.last.figure
    if run.metric.same(ours, theirs):
        return f"to the same {run.task.metric}"
    return f"to a {run.task.metric} {run.metric.gap(ours, theirs)} {'higher' if ours > theirs else 'lower'}"


def _shortened(control: Run) -> str:
    return f"{control.method} for {count(len(control.epochs), 'epoch')}"


def _control(run: Run, control: Run) -> str:
    """The comparison that decides: training less is what every faster method competes with."""
    took = duration(control.training_seconds)
    return f"{_shortened(control)} ({took}) came {_outcome(control, run)} than this"


def _noise(run: Run, baseline: Run, label: str) -> tuple[str, ...]:
    """Whether the test set can tell accuracies apart: twice the binomial standard error."""
    if run.task is not CLASSIFICATION:
        return (f"Each method ran with one seed, and another seed moves {run.task.metric.split()[-1]} too.",)
    ours, theirs = run.last.test_accuracy, baseline.last.test_accuracy
    images = min(run.samples["test"], baseline.samples["test"])
    error = 2 * math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / images)
    seeds = "each method ran with one seed, and another seed moves accuracy too."
    if abs(ours - theirs) <= error:
        return (
            f"{images:,} test samples cannot tell its accuracy from that of {label} (twice the standard error of the "
            f"difference is {points(error)}); {seeds}",
        )
    return (f"The difference in accuracy to {label} is more than chance in the test samples explains; {seeds}",)


def _same_time(run: Run, baseline: Run, label: str) -> tuple[str, ...]:
    """The control that costs nothing: how far the baseline was when the faster run had finished."""
    if baseline.training_seconds <= run.training_seconds:
        return ()
    done = [e for e, t in zip(baseline.epochs, baseline.clock, strict=True) if t <= run.training_seconds]
    if not done:
        return (f"In that time {label} did not finish its first epoch.",)
    return (
        f"In that time {label} had done {count(len(done), 'epoch')} of {len(baseline.epochs)} and was at "
        f"{run.metric.text(done[-1].figure)}, its learning rate still meant for the full length; a fair "
        f"control is {label} trained for fewer epochs.",
    )


def _flops(run: Run, baseline: Run) -> tuple[str, ...]:
    saved = baseline.work[-1] / run.work[-1]
    factor = baseline.training_seconds / run.training_seconds
    if saved <= 1 + SAME_TIME:
        return ()
    return (f"It did {ratio(saved)} fewer FLOPs; on the clock that became {ratio(factor)}.",)


def _dense_layers(run: Run) -> tuple[str, ...]:
    sparse = [layer for layer in run.layers if layer.converted]
    dense = sum(not layer.runs_sparse for layer in sparse)
    if not dense:
        return ()
    return (f"{dense} of its {count(len(sparse), 'sparse layer')} ran a dense kernel (see the layers).",)


def _unlike(run: Run, baseline: Run) -> tuple[str, ...]:
    different = differences(run, baseline)
    return (f"Not like for like: {', '.join(different)}.",) if different else ()


def labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """A short name for each run, no two the same: its method, with epochs or the directory where methods repeat."""
    less = controls(runs)
    names = [f"{run.method}, {count(len(run.epochs), 'epoch')}" if run in less else run.method for run in runs]
    for finer in (lambda run: f"{run.method} ({run.path.name})", lambda run: f"{run.method} ({run.path})"):
        names = [n if names.count(n) == 1 else finer(run) for n, run in zip(names, runs, strict=True)]
    return tuple(n if run.finished else f"{n}, unfinished" for n, run in zip(names, runs, strict=True))
