"""One record per epoch and its JSON line, and where an epoch's seconds went."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from spfde.levers import Decision
from spfde.train.task import CLASSIFICATION, TASKS

CATEGORIES = ("kernels", "step", "data", "levers", "evaluation", "checkpoint", "other")


@dataclass(frozen=True)
class Epoch:
    """What one epoch did and cost.

    Accuracies are the shares of targets (classes; for a language, next tokens) that were right, losses means over them,
    `train_loss` with label smoothing and `test_loss` without, None where it is not finite. `task` is a name of
    `spfde.train.task.TASKS`. `lr` is the rate of the epoch's last step for what never freezes, `flops` the
    training FLOPs of the epoch (2 per multiply-add), `sparsity` the fraction of zeros over the sparse layers,
    `frozen` the blocks frozen at its end, `sieved` the samples that are out, `layers` the sparsity of each weighted
    layer after the epoch, in the order of the network, `memory` the most bytes held at once while training, by the
    process on a CPU and by tensors on a GPU. `cache` is what the activation cache did in the epoch: hits and misses
    (samples), flops that the hits spared, which `flops` does without, and the bytes that it holds; empty without one.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    lr: float
    samples: int
    flops: float
    seconds: Mapping[str, float]
    frozen: tuple[str, ...]
    sieved: int
    sparsity: float
    events: tuple[Decision, ...]
    layers: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    test_loss: float | None = None
    task: str = CLASSIFICATION.name
    cache: Mapping[str, float] = field(default_factory=dict)

    @property
    def figure(self) -> float:
        """The figure of the test set that the task is judged by."""
        return TASKS[self.task].figure(self)

    @property
    def total_seconds(self) -> float:
        """Seconds of the epoch: the sum of its parts."""
        return math.fsum(self.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Seconds of training: the total minus evaluation and checkpoint."""
        return self.total_seconds - self.seconds["evaluation"] - self.seconds["checkpoint"]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, as a line of metrics.jsonl holds it."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "total_seconds": self.total_seconds,
            "frozen": list(self.frozen),
            "events": list(values["events"]),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Epoch:
        """Build the record from `to_dict`'s values; those of an older version hold less."""
        fields = {item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values}
        fields["frozen"] = tuple(fields["frozen"])
        fields["events"] = tuple(Decision(**event) for event in fields["events"])
        return cls(**fields)


@dataclass(frozen=True)
class EpochProgress:
    """An epoch after `step` of its steps, of which its record will need these.

    `sample_flops` are those of one sample as the network is now, `flops` those spent so far; `loss` is the sum over the
    samples seen, `correct` how many of their `targets` were right, `cache` what the cache did.
    """

    epoch: int
    sample_flops: float
    events: tuple[Decision, ...]
    flops: float = 0.0
    step: int = 0
    loss: float = 0.0
    targets: int = 0
    correct: int = 0
    lr: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    cache: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a checkpoint holds them."""
        values = dataclasses.asdict(self)
        return {**values, "events": list(values["events"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochProgress:
        """Build it from `to_dict`'s values."""
        return cls(**{**values, "events": tuple(Decision(**event) for event in values["events"])})


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Read JSON lines up to the first one that is no complete object (a line cut by a crash)."""
    records: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def is_whole(line: Mapping[str, Any]) -> bool:
    """Tell whether a line holds all of an epoch's record, but for what an older version did not write."""
    try:
        record = Epoch.from_dict(line)
        return record.seconds.keys() == set(CATEGORIES) and record.total_seconds >= 0
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def reconcile(lines: list[dict[str, Any]], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cut `lines` to the epochs of `history` (the checkpoint's), and fill what they lack from it.

    A line wins over the history where both have the epoch: it also knows what the checkpoint itself took.
    """
    kept = []
    for line, record in zip(lines, history, strict=False):
        if line.get("epoch") != record["epoch"]:
            break
        kept.append(line)
    return kept + history[len(kept) :]


class Stopwatch:
    """Splits the time since its start into `CATEGORIES`, in seconds, on top of the `seconds` that it starts with.

    Every instant belongs to one category, the innermost open one ("other" when none is), so the parts make up
    the total whatever happens in between.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, seconds: Mapping[str, float] = {}) -> None:
        self._clock = clock
        self._seconds = {**dict.fromkeys(CATEGORIES, 0.0), **seconds}
        self._current = "other"
        self._since = clock()

    @contextmanager
    def __call__(self, category: str) -> Iterator[None]:
        """Count the time inside the block as `category`."""
        outer = self._switch(category)
        try:
            yield
        finally:
            self._switch(outer)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count `seconds` of `source` as `target`, at most what `source` has."""
        seconds = min(seconds, self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every category up to now."""
        self._switch(self._current)
        return dict(self._seconds)

    def _switch(self, category: str) -> str:
        if category not in self._seconds:
            raise ValueError(f"expected one of {', '.join(CATEGORIES)}, got {category!r}")
        now = self._clock()
        self._seconds[self._current] += now - self._since
        outer, self._current, self._since = self._current, category, now
        return outer
