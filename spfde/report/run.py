"""A run, read from its directory and checked against the dataclasses that wrote it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from spfde._schema import WRITER, build, checked
from spfde.freezing import FreezeReport
from spfde.report.metric import METRICS, Metric
from spfde.sieving import SieveRecord
from spfde.summary import LayerSummary
from spfde.train import run_dir as files
from spfde.train.recipe import Recipe, all_epochs
from spfde.train.stats import CATEGORIES, Epoch
from spfde.train.task import TASKS, Task

NEEDED = ("dataset", "model", "method", "epochs", "batch_size", "seed")  # of a recipe, whatever its version
NOT_TRAINING = ("evaluation", "checkpoint")
OVERHEAD = ("levers", "checkpoint", "other")
TOLERANCE = 1e-6  # seconds by which an epoch's parts may miss its total


@dataclass(frozen=True)
class Run:
    """One run. Accuracies are fractions, seconds are those of the epochs. finished: whether it came to its end."""

    path: Path
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    version: str
    started: str
    samples: Mapping[str, int]
    parameters: int
    layout: Mapping[str, str]
    epochs: tuple[Epoch, ...]
    layers: tuple[LayerSummary, ...]
    freezing: Mapping[str, Any] | None = None
    sieve: SieveRecord | None = None
    finished: bool = True

    @property
    def freezes(self) -> FreezeReport | None:
        """When which block was frozen; None where none was or should have been. ValueError where that is damaged."""
        if "blocks" in (self.freezing or {}):
            try:
                return FreezeReport.from_dict(self.freezing, self.epochs)
            except ValueError as error:
                raise ValueError(f"{error} (freezing in {self.path / files.RUN})") from error
        return FreezeReport.of_records(self.epochs) if any(epoch.frozen for epoch in self.epochs) else None

    @property
    def method(self) -> str:
        """Name of the training method."""
        return self.recipe["method"]

    @property
    def last(self) -> Epoch:
        """Record of the last epoch."""
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        """Record of the epoch with the best figure of the test set, the earliest of equals."""
        return (max if self.task.higher else min)(self.epochs, key=lambda epoch: epoch.figure)

    @property
    def task(self) -> Task:
        """What was learnt, which says by which figure runs are judged."""
        return TASKS[self.last.task]

    @property
    def metric(self) -> Metric:
        """How that figure is told."""
        return METRICS[self.last.task]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by category, over all epochs."""
        return {name: math.fsum(e.seconds[name] for e in self.epochs) for name in CATEGORIES}

    @property
    def total_seconds(self) -> float:
        """Seconds of all epochs: the sum of the categories."""
        return math.fsum(self.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Seconds of all epochs without evaluation and checkpoints."""
        return self.clock[-1]

    @property
    def overhead_seconds(self) -> float:
        """Seconds that are neither the network's nor the data's: levers, checkpoints, metrics, progress."""
        return math.fsum(self.seconds[name] for name in OVERHEAD)

    @property
    def memory(self) -> int:
        """Most bytes that the process held at once while training; 0 where it was not recorded."""
        return max(epoch.memory for epoch in self.epochs)

    @property
    def clock(self) -> tuple[float, ...]:
        """Training seconds passed at the end of each epoch."""
        return tuple(accumulate(epoch.training_seconds for epoch in self.epochs))

    @property
    def work(self) -> tuple[float, ...]:
        """Training FLOPs done at the end of each epoch."""
        return tuple(accumulate(epoch.flops for epoch in self.epochs))


def read(path: str | os.PathLike[str]) -> Run:
    """Read a run directory.

    Raises:
        ValueError: it is no directory, a file is missing, or damaged or has
            another schema; the message names the file, the line and the key.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"expected a run directory, got {path}, which is none, try the out directory of spfde train")
    if not (path / files.RUN).is_file():
        raise ValueError(
            f"expected a run directory, got {path}, which has no {files.RUN}, try the out directory of spfde train"
        )
    finished = (path / files.RESULT).is_file()
    for name in (files.METRICS, *([files.LAYERS] if finished else [])):
        if not (path / name).is_file():
            raise ValueError(
                f"expected a run with an epoch in {path}, got one without {name} (it was stopped, or still runs), "
                f"try spfde train --resume --out {path}"
            )
    about = path / files.RUN
    own = ("path", "epochs", "layers", "sieve", "finished")  # not of that file
    run = checked(Run, _json(about), about, [f.name for f in fields(Run) if f.name not in own])
    checked(Recipe, {**dict.fromkeys(NEEDED), **run["recipe"]}, f"{about}, recipe", list(NEEDED))
    for half in ("train", "test"):
        if half not in run["samples"]:
            raise ValueError(f"expected {half!r} in {about}, samples, got {run['samples']}, {WRITER}")
    epochs = _epochs(path / files.METRICS)
    if finished and len(epochs) != all_epochs(run["recipe"]):
        raise ValueError(
            f"expected {all_epochs(run['recipe'])} epochs in {path / files.METRICS}, got {len(epochs)}, "
            "try spfde train --resume"
        )
    if not epochs:
        raise ValueError(f"expected a run with an epoch in {path}, got none yet, try it once the first is done")
    chosen = path / files.SIEVE
    sieve = build(SieveRecord, _json(chosen), chosen) if chosen.is_file() else None
    layers = _layers(path / files.LAYERS) if (path / files.LAYERS).is_file() else ()
    read = Run(path=path, **run, epochs=epochs, layers=layers, sieve=sieve, finished=finished)
    _ = read.freezes  # what is damaged is told here
    return read


def _epochs(path: Path) -> tuple[Epoch, ...]:
    epochs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        record = _parse(line, where)
        epoch = build(Epoch, record, where)
        if epoch.epoch != number - 1:
            raise ValueError(f"expected epoch {number - 1} in {where}, got {epoch.epoch}, try a fresh run")
        if epoch.task not in TASKS:
            raise ValueError(f"expected one of {', '.join(TASKS)} in {where}, task, got {epoch.task!r}, {WRITER}")
        if missing := [name for name in CATEGORIES if name not in epoch.seconds]:
            got = ", ".join(map(repr, epoch.seconds))
            raise ValueError(f"expected {missing[0]!r} in {where}, seconds, got only {got}, {WRITER}")
        total = record.get("total_seconds")
        if not isinstance(total, int | float) or not abs(epoch.total_seconds - total) <= TOLERANCE:
            raise ValueError(
                f"expected seconds that sum to total_seconds in {where}, got {epoch.total_seconds} and {total}, "
                "try a fresh run"
            )
        epochs.append(epoch)
    return tuple(epochs)


def _layers(path: Path) -> tuple[LayerSummary, ...]:
    rows = _json(path)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of layers in {path}, got {type(rows).__name__}, try a fresh run")
    return tuple(build(LayerSummary, row, f"{path}, layer {index}") for index, row in enumerate(rows))


def _json(path: Path) -> Any:
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"expected a run's JSON in {where}, got one nested too deeply, try a fresh run") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected JSON in {where}, got {text[-40:]!r} ({error.msg}: damaged, or cut off by a crash), "
            "try spfde train --resume"
        ) from error
