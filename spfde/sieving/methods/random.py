"""The control for every sieve: the same budget, samples drawn at random."""

from __future__ import annotations

import numpy as np

from spfde.sieving.queue import QueueSieve
from spfde.sieving.shuffle import derived, permutation

__all__ = ["Random"]


class Random(QueueSieve):
    """Sends active samples drawn at random to the tail of the queue and takes as many back from its head.

    Differs from Circular only in which samples leave: what a score gains over this is what the score is
    worth. `observe` counts presentations and has no influence.
    """

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        """Nothing: no score."""

    def _leaving(self, active: np.ndarray, limit: int) -> tuple[np.ndarray, str]:
        rows = permutation(len(active), derived(self.seed, "leaving", self.epoch))[:limit]
        return rows.numpy(), f"{len(rows)} of {len(active)} drawn at random, the control"
