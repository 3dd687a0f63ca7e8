"""Epsilon-greedy: the samples of the highest loss, and some at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction
from spfde.sieving.reselect import ReselectSieve, highest
from spfde.sieving.shuffle import derived, share, shuffled

__all__ = ["EpsGreedy"]


class EpsGreedy(ReselectSieve):
    """Of the samples that stay, floor(epsilon * count) are drawn at random, the others have the highest mean loss.

    Args:
        epsilon: share of the samples that stay that is drawn, in [0, 1].
        (the others are those of every reselecting sieve: num_samples, fraction, interval, keep, seed)

    Source: Raju, Daruwalla, Lipasti, Accelerating Deep Learning with Dynamic Data Pruning (2021, arXiv 2111.12621).
    They look at all samples before each choice; here a sample that is out keeps the loss that it had.
    """

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.2,
        interval: int = 5,
        *,
        epsilon: float = 0.1,
        keep: float = 0.8,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, fraction, interval, keep, seed, **ranks)
        self.epsilon = check_fraction("epsilon", epsilon, example=0.1, one=True)

    def _best(self, count: int) -> tuple[np.ndarray, str]:
        drawn = share(self.epsilon, count)
        greedy = highest(self._losses.values, count - drawn)
        others = np.ones(self.num_samples, bool)
        others[greedy] = False
        pool = shuffled(torch.from_numpy(np.flatnonzero(others)), derived(self.seed, "drawn", self.epoch))
        stay = np.concatenate([greedy, pool[:drawn].numpy()])
        return stay, f"the {len(greedy)} of the highest mean loss and {drawn} of the others at random"

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "epsilon": self.epsilon}
