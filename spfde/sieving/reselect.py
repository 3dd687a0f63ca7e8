"""Sieves that choose a part of fixed size anew at every interval, by a score of each sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction, check_number
from spfde.sieving.scores import LatestScores
from spfde.sieving.shuffle import share
from spfde.sieving.sieve import Sieve, SieveEvent
from spfde.sieving.window import lowest, ordered


class ReselectSieve(Sieve):
    """All samples in the first interval; after each one the num_samples - floor(fraction * num_samples) best stay.

    The score starts from an exponential mean of each sample's losses, `keep` of which stays at a new one. A sample that
    is out keeps its last mean: there is no pass to look at it.

    Args:
        num_samples: size of the data set.
        fraction: share of the samples that is out, in [0, 1).
        interval: epochs between two choices.
        keep: share of the old mean that stays at a new loss, in [0, 1).
        seed: of the draws and of the order of each epoch.
        ranks: rank, world and group of `Sieve`.
    """

    def __init__(self, num_samples: int, fraction: float, interval: int, keep: float, seed: int, **ranks: Any) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.fraction = check_fraction("fraction", fraction, example=0.2)
        self.interval = check_number("interval", interval, 1)
        self.keep = check_fraction("keep", keep, example=0.8)
        self._losses = LatestScores(num_samples, keep)

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self._losses.add(samples, losses)

    def _boundary(self) -> SieveEvent | None:
        if self.epoch % self.interval:
            return None
        stay, why = self._best(self.num_samples - share(self.fraction, self.num_samples))
        active = np.zeros(self.num_samples, bool)
        active[stay] = True
        moved = int(np.count_nonzero(self._is_active & ~active))
        self._choose(torch.from_numpy(np.flatnonzero(active)))
        return SieveEvent(self.epoch, moved, f"{len(stay)} of {self.num_samples} are in: {why}")

    @abstractmethod
    def _best(self, count: int) -> tuple[np.ndarray, str]:
        """`count` samples that stay, and why these."""

    def _identity(self) -> dict[str, Any]:
        own = {"fraction": self.fraction, "interval": self.interval, "keep": self.keep}
        return {**super()._identity(), **own}

    def _own_state(self) -> dict[str, Any]:
        return self._losses.state_dict()

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._losses.load_state_dict(state)


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Samples of the `count` highest scores float32 [n], of equal ones the first; NaN is the highest. In no order."""
    keys = ordered(-scores)
    keys[np.isnan(scores)] = 0
    return lowest(keys, count, in_order=False)
