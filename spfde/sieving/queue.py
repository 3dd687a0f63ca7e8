"""Sieves of a fixed size: the samples that are out wait in a queue and come back in turn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction, check_number
from spfde.sieving.shuffle import derived, permutation, share, shuffled
from spfde.sieving.sieve import Sieve, SieveEvent
from spfde.sieving.window import Window


class QueueSieve(Sieve):
    """Samples [0, num_samples) of which floor(fraction * num_samples) are out at any time, in a queue.

    At every `interval`-th `end_epoch` min(floor(fraction * active), out) samples, at least one while any is out, go to
    the tail of the queue and as many come back from its head. The first queue is a random draw. When all of it has come
    back, so that each sample has been used, the queue is shuffled after every update.

    Subclasses say which samples leave, from what `self.window` counted since the last update.

    Args:
        num_samples: size of the data set.
        fraction: share of the samples that is out, in [0, 1).
        interval: epochs between two updates.
        seed: of the first draw, the order of each epoch and the shuffles of the queue.
        ranks: rank, world and group of `Sieve`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, num_samples: int, fraction: float = 0.2, interval: int = 5, seed: int = 0, **ranks: Any) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.interval = check_number("interval", interval, 1)
        self.fraction = check_fraction("fraction", fraction, example=0.2)
        self.window = Window(num_samples)
        drawn = permutation(num_samples, derived(seed, "first draw", 0))
        self._place(drawn[: share(fraction, num_samples)])
        self._unused = len(self._removed)  # of the first draw, still at the head of the queue

    @property
    def removed(self) -> torch.Tensor:
        """Samples that are out: int64 [out], in queue order, the next to come back first."""
        return self._removed.clone()

    @abstractmethod
    def _leaving(self, active: np.ndarray, limit: int) -> tuple[np.ndarray, str]:
        """Rows of `active` int64 [n] that go out now, at most `limit`, in the order in which they queue; and why."""

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self.window.add(samples, losses, correct)

    def _boundary(self) -> SieveEvent | None:
        if self.epoch % self.interval:
            return None
        active, out = self.active, len(self._removed)
        rows, reason = self._leaving(active.numpy(), min(max(1, share(self.fraction, len(active))), out))
        returning, queue = rotate(self._removed, active[torch.from_numpy(rows)])
        self._unused = max(0, self._unused - len(returning))
        self._place(queue if self._unused else shuffled(queue, derived(self.seed, "queue", self.epoch)))
        self.window.reset()
        return SieveEvent(self.epoch, len(returning), reason)

    def _told(self, event: SieveEvent) -> str:
        return f"swapped {event.moved} samples"

    def _place(self, removed: torch.Tensor) -> None:
        self._removed = removed
        active = np.ones(self.num_samples, bool)
        active[removed.numpy()] = False
        self._choose(torch.from_numpy(np.flatnonzero(active)))

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "fraction": self.fraction, "interval": self.interval}

    def _own_state(self) -> dict[str, Any]:
        return {"unused": self._unused, "removed": self.removed, **self.window.state_dict()}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        out = len(self._removed)
        if not 0 <= state["unused"] <= out:
            raise ValueError(f"expected unused in [0, {out}], got {state['unused']}; try another checkpoint")
        queue = state["removed"]
        if out and (queue.min() < 0 or queue.max() >= self.num_samples or len(queue.unique()) < len(queue)):
            raise ValueError(
                f"expected removed samples that differ, in [0, {self.num_samples}), got "
                f"{queue.tolist()[:8]}...; try another checkpoint"
            )
        self._unused = state["unused"]
        self._place(queue.clone())
        self.window.load_state_dict(state)


def rotate(queue: torch.Tensor, entering: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(head, rest): as many samples leave at the head of `queue` as enter, in order, at its tail.

    No sample that enters leaves at once: there must be no more of them than the queue is long.
    """
    return queue[: len(entering)], torch.cat([queue[len(entering) :], entering])
