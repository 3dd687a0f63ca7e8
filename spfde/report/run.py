"""A finished run, read from its directory and checked against the schema that `spfde.train` writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from spfde.summary import LayerSummary
from spfde.train import run_dir as files
from spfde.train.recipe import all_epochs
from spfde.train.stats import CATEGORIES, Epoch

# What a file must hold, by key: an example of the type. More keys are welcome.
RUN = {
    "recipe": {},
    "environment": {},
    "version": "",
    "started": "",
    "samples": {},
    "parameters": 0,
    "layout": {},
}
EPOCH = {
    "epoch": 0,
    "train_loss": 0.0,
    "train_accuracy": 0.0,
    "test_accuracy": 0.0,
    "lr": 0.0,
    "samples": 0,
    "flops": 0.0,
    "seconds": {},
    "total_seconds": 0.0,
    "frozen": [],
    "sieved": 0,
    "sparsity": 0.0,
    "events": [],
}
# What a line of metrics.jsonl may leave out: an older version wrote no such key.
LATER = {"layers": {}, "memory": 0}
LAYER = {
    "name": "",
    "kind": "",
    "shape": [],
    "sparsity": 0.0,
    "nnz": 0,
    "pattern": "",
    "kernel": "",
    "reason": "",
    "runs_sparse": True,
}
EVENT = {"kind": "", "text": "", "reason": ""}
RECIPE = {"dataset": "", "model": "", "method": "", "epochs": 0, "batch_size": 0, "seed": 0}
NOT_TRAINING = ("evaluation", "checkpoint")
OVERHEAD = ("levers", "checkpoint", "other")
TOLERANCE = 1e-6  # seconds by which an epoch's parts may miss its total


@dataclass(frozen=True)
class Run:
    """One finished run. Accuracies are fractions, seconds are those of the epochs."""

    path: Path
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    version: str
    started: str
    samples: Mapping[str, int]
    parameters: int
    layout: Mapping[str, str]
    freezing: Mapping[str, Any] | None
    epochs: tuple[Epoch, ...]
    layers: tuple[LayerSummary, ...]

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
        """Record of the epoch with the highest test accuracy, the earliest of equals."""
        return max(self.epochs, key=lambda epoch: epoch.test_accuracy)

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
        ValueError: it is no directory, a file of a finished run is missing, or a file is damaged or has
            another schema; the message names the file, the line and the key.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"expected a run directory, got {path}, which is none, try the out directory of spfde train")
    if not (path / files.RUN).is_file():
        raise ValueError(
            f"expected a run directory, got {path}, which has no {files.RUN}, try the out directory of spfde train"
        )
    for name in (files.METRICS, files.LAYERS, files.RESULT):
        if not (path / name).is_file():
            raise ValueError(
                f"expected a finished run in {path}, got one without {name} (it was stopped, or still runs), "
                f"try spfde train --resume --out {path}"
            )
    run = _object(_json(path / files.RUN), RUN, path / files.RUN)
    _object(run["recipe"], RECIPE, f"{path / files.RUN}, recipe")
    _object(run["samples"], {"train": 0, "test": 0}, f"{path / files.RUN}, samples")
    epochs = _epochs(path / files.METRICS)
    if len(epochs) != all_epochs(run["recipe"]):
        raise ValueError(
            f"expected {all_epochs(run['recipe'])} epochs in {path / files.METRICS}, got {len(epochs)}, "
            "try spfde train --resume"
        )
    return Run(
        path=path,
        **{name: run[name] for name in RUN},
        freezing=run.get("freezing"),
        epochs=epochs,
        layers=_layers(path / files.LAYERS),
    )


def _epochs(path: Path) -> tuple[Epoch, ...]:
    epochs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        record = _object(_parse(line, where), EPOCH, where)
        if record["epoch"] != number - 1:
            raise ValueError(f"expected epoch {number - 1} in {where}, got {record['epoch']}, try a fresh run")
        _object(record, {key: example for key, example in LATER.items() if key in record}, where)
        _object(record["seconds"], dict.fromkeys(CATEGORIES, 0.0), f"{where}, seconds")
        layers = record.get("layers", {})
        _object(layers, dict.fromkeys(layers, 0.0), f"{where}, layers")
        for event in record["events"]:
            _object(event, EVENT, f"{where}, events")
        epoch = Epoch.from_dict(record)
        if abs(epoch.total_seconds - record["total_seconds"]) > TOLERANCE:
            raise ValueError(
                f"expected seconds that sum to total_seconds in {where}, got {epoch.total_seconds} and "
                f"{record['total_seconds']}, try a fresh run"
            )
        epochs.append(epoch)
    return tuple(epochs)


def _layers(path: Path) -> tuple[LayerSummary, ...]:
    rows = _json(path)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of layers in {path}, got {type(rows).__name__}, try a fresh run")
    checked = (_object(row, LAYER, f"{path}, layer {i}") for i, row in enumerate(rows))
    return tuple(
        LayerSummary(**{**{name: row[name] for name in LAYER}, "shape": tuple(row["shape"])}) for row in checked
    )


def _json(path: Path) -> Any:
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected JSON in {where}, got {text[-40:]!r} ({error.msg}: damaged, or cut off by a crash), "
            "try spfde train --resume"
        ) from error


def _object(value: Any, schema: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Return `value` if it is an object with the schema's keys and types."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object in {where}, got {type(value).__name__}, try a fresh run")
    for key, example in schema.items():
        if key not in value:
            raise ValueError(
                f"expected {key!r} in {where}, got only {', '.join(map(repr, value)) or 'nothing'}, "
                "try the version of spfde that wrote the run"
            )
        if not _matches(value[key], example):
            raise ValueError(
                f"expected {key!r} in {where} to be {_NAMES[type(example)]}, got {value[key]!r}, "
                "try the version of spfde that wrote the run"
            )
    return value


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
}


def _matches(value: Any, example: Any) -> bool:
    if isinstance(example, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is type(example)
