"""The figures of a comparison: one row per figure, one value per run, and what the figure means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spfde._words import NONE, duration, percent, ratio, size, work
from spfde.report.metric import bits
from spfde.report.run import CATEGORIES, Run
from spfde.train.task import LANGUAGE


@dataclass(frozen=True)
class Row:
    """One figure: its name, one value per run, and its definition in a sentence."""

    name: str
    values: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Section:
    """Figures that belong together."""

    title: str
    rows: tuple[Row, ...]


# What each part of the time is, in the order in which a bar is stacked.
TIME = {
    "kernels": "Seconds inside spfde's native kernels, forward and backward.",
    "step": "Seconds of the rest of forward, backward and optimizer step.",
    "data": "Seconds of shuffling samples and fetching batches.",
    "levers": "Seconds of deciding: prune and grow, freezing, sieving.",
    "evaluation": "Seconds of measuring on the test set after every epoch; not training.",
    "checkpoint": "Seconds of writing the checkpoint after every epoch; not training.",
    "other": "Seconds of everything else between the start and the end of an epoch.",
}


def sections(runs: Sequence[Run], labels: Sequence[str]) -> tuple[Section, ...]:
    """The figures of `runs`; speed-ups and savings are against the first."""
    baseline = runs[0]

    def row(name: str, value: Callable[[Run], str], meaning: str) -> Row:
        return Row(name, tuple(value(run) for run in runs), meaning)

    task, metric = baseline.task, baseline.metric
    kind, best = task.metric.split()[-1], "highest" if task.higher else "lowest"
    outcome = [
        row(task.metric, lambda run: metric.exact(run.last.figure), metric.meaning),
        row(
            f"best {task.metric}",
            lambda run: f"{metric.exact(run.best.figure)} (epoch {run.best.epoch})",
            f"{best.capitalize()} {task.metric} of any epoch. Picking it looks at the test set: "
            "compare the line above.",
        ),
    ]
    if task is LANGUAGE:
        outcome += [
            row("bits a token", lambda run: bits(run.last.figure), "The base-2 logarithm of the test perplexity."),
            row(
                "next tokens right",
                lambda run: percent(run.last.test_accuracy, 2),
                "Share of the test set's tokens that got the highest probability, after the last epoch.",
            ),
        ]
    else:
        outcome.append(
            row(
                "train accuracy",
                lambda run: percent(run.last.train_accuracy, 2),
                "Share right among the samples that the last epoch trained on, as they were seen in training; "
                "a sieve leaves the easy ones out.",
            )
        )
    target = (min if task.higher else max)(run.best.figure for run in runs)
    time = (
        row(
            "training time",
            lambda run: duration(run.training_seconds),
            "Wall-clock of all epochs without evaluation and checkpoints. Set-up before the first epoch "
            "(loading data, building the network) is in no figure.",
        ),
        row(
            "speed-up",
            lambda run: ratio(baseline.training_seconds / run.training_seconds),
            f"Training time of {labels[0]} divided by the run's own.",
        ),
        row(
            "total time",
            lambda run: duration(run.total_seconds),
            "Wall-clock of all epochs with evaluation and checkpoints.",
        ),
        row(
            f"time to {metric.exact(target)}",
            lambda run: duration(time_to(run, target)),
            f"Training time up to the first epoch that reached the {best} {kind} that every run reached.",
        ),
        row(
            "first epoch",
            lambda run: duration(run.epochs[0].training_seconds),
            "Training time of the first epoch.",
        ),
        row("last epoch", lambda run: duration(run.last.training_seconds), "Training time of the last epoch."),
        row(
            "overhead",
            lambda run: percent(run.overhead_seconds / run.training_seconds),
            "Levers, checkpoint and other, divided by the training time: what is neither the network's nor the data's.",
        ),
    )
    cost = (
        row(
            "training FLOPs",
            lambda run: work(run.work[-1]),
            "Floating-point operations of all epochs, 2 per multiply-add, counted for stored weights only: "
            "forward, weight gradient and input gradient; frozen layers run no backward.",
        ),
        row(
            "FLOPs saved",
            lambda run: ratio(baseline.work[-1] / run.work[-1]),
            f"Training FLOPs of {labels[0]} divided by the run's own: what the speed-up would be if time were FLOPs.",
        ),
        row(
            "sparsity",
            lambda run: percent(run.last.sparsity),
            "Zero weights over all weights of the sparse layers, after the last epoch.",
        ),
        row(
            "sparse layers",
            _sparse_layers,
            "Layers that really ran a sparse kernel, of those made sparse.",
        ),
        row(
            "frozen blocks",
            _frozen,
            "Blocks frozen at the end, and the epoch that froze the first one.",
        ),
        row(
            "read from the cache",
            _cached,
            "Share of the samples that met a frozen front whose activations were read instead of computed, and the "
            "most bytes that they took. The FLOPs that this spared are in none of the figures above.",
        ),
        row(
            "sieved samples",
            lambda run: percent(run.last.sieved / run.samples["train"]) if run.last.sieved else NONE,
            "Share of the training samples that the last epoch left out.",
        ),
        row(
            "peak memory",
            lambda run: size(run.memory) if run.memory else NONE,
            "Most memory that the process held at once while training: network, activations, optimizer, data set and "
            "PyTorch itself. A run that followed another one in the same process may hold on to memory of the first.",
        ),
    )
    attribution = tuple(
        row(name, lambda run, name=name: _part(run, run.seconds[name]), meaning)
        for name, meaning in ((name, TIME[name]) for name in CATEGORIES)
    )
    total = row("sum", lambda run: _part(run, run.total_seconds), "The total time, to which the lines above add up.")
    return (
        Section("Outcome", tuple(outcome)),
        Section("Time", time),
        Section("Work", cost),
        Section("Where the time went", (*attribution, total)),
    )


def time_to(run: Run, target: float) -> float:
    """Training seconds up to the end of the first epoch whose figure of the test set is at least this good.

    Raises:
        ValueError: no epoch has it.
    """
    for epoch, seconds in zip(run.epochs, run.clock, strict=True):
        if not run.task.better(target, epoch.figure):
            return seconds
    raise ValueError(f"expected a {run.task.metric} that the run reached, got {target}, try {run.best.figure}")


def _sparse_layers(run: Run) -> str:
    converted = [layer for layer in run.layers if layer.converted]
    return f"{sum(layer.runs_sparse for layer in converted)} of {len(converted)}" if converted else NONE


def _frozen(run: Run) -> str:
    if not run.last.frozen:
        return NONE
    first = next(epoch.epoch for epoch in run.epochs if epoch.frozen)
    return f"{len(run.last.frozen)} (from epoch {first})"


def _cached(run: Run) -> str:
    hits, misses = (sum(epoch.cache.get(name, 0) for epoch in run.epochs) for name in ("hits", "misses"))
    if not hits + misses:
        return NONE
    return f"{percent(hits / (hits + misses))} ({size(max(epoch.cache.get('bytes', 0) for epoch in run.epochs))})"


def _part(run: Run, seconds: float) -> str:
    return f"{seconds:.2f} s ({percent(seconds / run.total_seconds)})"
