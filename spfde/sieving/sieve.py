"""A sampler that holds part of the samples out of an epoch and lets them come back in turn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from spfde.sieving.queue import complement, rotate, shuffled
from spfde.sieving.window import SHOWN, Window, outcome


@dataclass(frozen=True)
class SieveEvent:
    """What a boundary did: before `epoch` begins, `moved` samples went out and as many came back."""

    epoch: int
    moved: int
    reason: str


class Sieve(Sampler[int], ABC):
    """Samples [0, num_samples) of which floor(fraction * num_samples) are out at any time, in a queue.

    Iterating yields the active samples, shuffled; the order is a pure function of (seed, epoch, active). At
    every `interval`-th `end_epoch` min(floor(fraction * active), out) samples, at least one while any is out,
    go to the tail of the queue and as many come back from its head. The first queue is a random draw. When
    all of it has come back, so that each sample has been used, the queue is shuffled after every update.

    Subclasses say which samples leave.

    Args:
        num_samples: size of the data set.
        fraction: share of the samples that is out, in [0, 1).
        interval: epochs between two updates.
        seed: of the first draw, the order of each epoch and the shuffles of the queue.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, num_samples: int, fraction: float = 0.2, interval: int = 5, seed: int = 0) -> None:
        _check_arguments(num_samples, fraction, interval, seed)
        self.num_samples, self.fraction, self.interval, self.seed = num_samples, fraction, interval, seed
        self.epoch = 0
        drawn = shuffled(torch.arange(num_samples), seed, "first draw", 0)
        self._place(drawn[: math.floor(fraction * num_samples)])
        self._unused = len(self._removed)  # of the first draw, still at the head of the queue
        self._presentations = np.zeros(num_samples, np.int64)  # before this window
        self._window = Window(num_samples)

    @property
    def active(self) -> torch.Tensor:
        """Samples of this epoch: int64 [active], ascending."""
        return self._active.clone()

    @property
    def removed(self) -> torch.Tensor:
        """Samples that are out: int64 [out], in queue order, the next to come back first."""
        return self._removed.clone()

    @property
    def presentations(self) -> torch.Tensor:
        """How often each sample was observed since the start: int64 [num_samples]."""
        return torch.from_numpy(self._presentations + self._window.counts[:, SHOWN].astype(np.int64))

    def order(self) -> torch.Tensor:
        """The active samples in this epoch's order: int64 [active]."""
        return shuffled(self._active, self.seed, "order", self.epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return len(self._active)

    def observe(self, indices: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Takes note of a training forward pass; a sample that appears twice counts in batch order.

        Args:
            indices: int64 [n], active samples.
            logits: floating point [n, classes], on any device.
            targets: int64 [n], classes.

        Raises:
            TypeError: an argument is not a tensor of the type above.
            ValueError: a shape does not fit, an index is not an active sample, a target not a class, or a
                logit not finite; nothing is counted then.
        """
        samples = self._check_batch(indices, logits, targets)
        if len(samples):
            self._window.add(samples, *outcome(logits, targets))

    def end_epoch(self) -> SieveEvent | None:
        """Closes an epoch; at the end of an interval swaps samples, resets the counters and says so."""
        self.epoch += 1
        if self.epoch % self.interval:
            return None
        out = len(self._removed)
        rows, reason = self._leaving(min(max(1, math.floor(self.fraction * len(self._active))), out))
        leaving = self._active[torch.from_numpy(rows)]
        returning, queue = rotate(self._removed, leaving)
        self._unused = max(0, self._unused - len(returning))
        self._place(queue if self._unused else shuffled(queue, self.seed, "queue", self.epoch))
        self._presentations += self._window.counts[:, SHOWN].astype(np.int64)
        self._window.reset()
        return SieveEvent(self.epoch, len(leaving), reason)

    @abstractmethod
    def _leaving(self, limit: int) -> tuple[np.ndarray, str]:
        """Rows of `active` that go out now, at most `limit`, in the order in which they queue; and why."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: where the sampler is, its queue and its counters."""
        return {
            **self._identity(),
            "epoch": self.epoch,
            "unused": self._unused,
            "removed": self.removed,
            "presentations": torch.from_numpy(self._presentations.copy()),
            "counts": torch.from_numpy(self._window.counts.copy()),
            "last": torch.from_numpy(self._window.last.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`, in the middle of an interval too.

        Raises:
            ValueError: `state` is that of another sieve, or damaged; nothing has changed then.
        """
        self._check_state(state)
        self.epoch, self._unused = state["epoch"], state["unused"]
        self._place(state["removed"].clone())
        self._presentations = state["presentations"].numpy().copy()
        self._window.counts = state["counts"].numpy().copy()
        self._window.last = state["last"].numpy().copy()

    def _identity(self) -> dict[str, Any]:
        fields = ("num_samples", "fraction", "interval", "seed")
        return {"method": type(self).__name__, **{name: getattr(self, name) for name in fields}}

    def _place(self, removed: torch.Tensor) -> None:
        self._removed = removed
        self._active = complement(removed, self.num_samples)
        self._is_active = np.ones(self.num_samples, bool)
        self._is_active[removed.numpy()] = False

    def _check_batch(self, indices: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        for name, tensor in (("indices", indices), ("targets", targets)):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64:
                raise TypeError(f"expected {name} as an int64 tensor, got {_kind(tensor)}; try {name}.long()")
        if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
            raise TypeError(f"expected logits as a floating point tensor, got {_kind(logits)}; try the model's output")
        n = len(indices) if indices.ndim == 1 else -1
        if logits.ndim != 2 or len(logits) != n or targets.shape != indices.shape:
            raise ValueError(
                "expected indices [n], logits [n, classes] and targets [n], got "
                f"{list(indices.shape)}, {list(logits.shape)} and {list(targets.shape)}; "
                "try flattening the batch"
            )
        samples = indices.cpu().numpy()
        if not n:
            return samples
        _check_range("indices", samples, self.num_samples)
        _check_range("targets", targets.cpu().numpy(), logits.shape[1])
        active = self._is_active[samples]
        if not active.all():
            raise ValueError(
                f"expected active samples, got {samples[~active][0]}, which is out in epoch {self.epoch}; "
                "try iterating this sampler, and calling end_epoch after the epoch's last observe"
            )
        return samples

    def _check_state(self, state: dict[str, Any]) -> None:
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ValueError(
                    f"expected a state with {name} {mine!r}, got {state.get(name)!r}; try the sieve it was saved from"
                )
        for name, mine in self.state_dict().items():
            theirs = state.get(name)
            same = type(theirs) is type(mine)
            if same and isinstance(mine, torch.Tensor):
                same = theirs.shape == mine.shape and theirs.dtype == mine.dtype
            if not same:
                raise ValueError(f"expected {_kind(mine)} as {name}, got {_kind(theirs)}; try another checkpoint")
        if state["epoch"] < 0 or not 0 <= state["unused"] <= len(self._removed):
            raise ValueError(
                f"expected epoch >= 0 and unused in [0, {len(self._removed)}], got {state['epoch']} and "
                f"{state['unused']}; try another checkpoint"
            )
        queue = state["removed"]
        if len(queue) and (queue.min() < 0 or queue.max() >= self.num_samples or len(queue.unique()) < len(queue)):
            raise ValueError(
                f"expected removed samples that differ, in [0, {self.num_samples}), got "
                f"{queue.tolist()[:8]}...; try another checkpoint"
            )


def _check_range(name: str, values: np.ndarray, end: int) -> None:
    if values.view(np.uint64).max() >= end:  # a negative one is huge as unsigned: one pass for both ends
        wrong = values[(values < 0) | (values >= end)][0]
        raise ValueError(f"expected {name} in [0, {end}), got {wrong}; try the data set's own numbers")


def _check_arguments(num_samples: int, fraction: float, interval: int, seed: int) -> None:
    for name, value, low in (("num_samples", num_samples, 1), ("interval", interval, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"expected {name} to be an integer >= {low}, got {value!r}; try {low}")
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise ValueError(f"expected fraction in [0, 1), got {fraction!r}; try 0.2")


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
