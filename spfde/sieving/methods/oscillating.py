"""Oscillating: a window over groups of like loss slides from easy to hard, and the volume varies with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction, check_number
from spfde.sieving.scores import LatestScores
from spfde.sieving.shuffle import derived, permutation, share, written
from spfde.sieving.sieve import Sieve, SieveEvent

__all__ = ["Oscillating"]

ROUNDS = 50  # of k-means; on sorted numbers it settles in fewer


class Oscillating(Sieve):
    """floor(fraction * num_samples) are out at random; of the others, a window of groups of like loss is in.

    The latest losses are parted into `groups` by k-means. The window covers round(window * groups) of them, from the
    easiest on; it moves up by one group an epoch and starts over once it has reached the hardest. Groups differ in
    size, so the volume does. In the first epoch all samples are in, and one that was not observed yet is so in any;
    after floor(anneal * epochs) only the random part is out.

    Args:
        num_samples: size of the data set.
        fraction: share that is out at random, drawn anew for every epoch, in [0, 1).
        groups: of like loss.
        window: share of the groups that is in, in [0, 1].
        epochs: of the whole training.
        anneal: share of the epochs in which the window slides, in [0, 1].
        seed: of the draws and of the order of each epoch.
        ranks: rank, world and group of `Sieve`.

    Source: Zhou et al., Scale Efficient Training for Large Datasets (SeTa, CVPR 2025), with the defaults of its code.
    """

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.1,
        *,
        groups: int = 10,
        window: float = 0.5,
        epochs: int = 200,
        anneal: float = 0.875,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.fraction = check_fraction("fraction", fraction, example=0.1)
        self.groups, self.epochs = check_number("groups", groups, 1), check_number("epochs", epochs, 1)
        self.window = check_fraction("window", window, example=0.5, one=True)
        self.anneal = check_fraction("anneal", anneal, example=0.875, one=True)
        self._losses = LatestScores(num_samples)

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self._losses.add(samples, losses)

    def _boundary(self) -> SieveEvent | None:
        kept = self.num_samples - share(self.fraction, self.num_samples)
        out = permutation(self.num_samples, derived(self.seed, "drawn", self.epoch))[kept:]
        inside = np.ones(self.num_samples, bool)
        inside[out.numpy()] = False
        drawn = torch.from_numpy(np.flatnonzero(inside))
        losses = self._losses.values[drawn.numpy()]
        known = ~np.isnan(losses)
        if self.epoch >= share(self.anneal, self.epochs) or not known.any():
            self._choose(drawn)
            return SieveEvent(self.epoch, self.num_samples - kept, f"{kept} drawn at random are in")
        cuts = group_ends(losses[known], self.groups)
        size = min(len(cuts), max(1, round(written(self.window) * len(cuts))))
        first = (self.epoch - 1) % (len(cuts) - size + 1)
        low = cuts[first - 1] if first else -np.inf
        inside = ~known | ((losses > low) & (losses <= cuts[first + size - 1]))
        self._choose(drawn[torch.from_numpy(inside)])
        return SieveEvent(
            self.epoch,
            self.num_samples - self.volume,
            f"groups {first + 1} to {first + size} of {len(cuts)} from easy to hard are in, of {kept} drawn at random",
        )

    def _identity(self) -> dict[str, Any]:
        own = {"fraction": self.fraction, "groups": self.groups, "window": self.window, "epochs": self.epochs}
        return {**super()._identity(), **own, "anneal": self.anneal}

    def _own_state(self) -> dict[str, Any]:
        return self._losses.state_dict()

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._losses.load_state_dict(state)


def group_ends(values: np.ndarray, groups: int) -> np.ndarray:
    """The highest value of each of at most `groups` clusters of values float32 [n], ascending: k-means on a line.

    Starts from groups of equal size. Sorted once, a round costs a binary search for each border and no pass over the
    values, so that ten million are parted in about the time of the sort.
    """
    line = np.sort(values).astype(np.float64)
    sums = np.zeros(len(line) + 1)
    np.cumsum(line, out=sums[1:])
    ends = np.unique(np.linspace(0, len(line), groups + 1).round().astype(np.int64))[1:]
    for _ in range(ROUNDS):
        starts = np.concatenate([[0], ends[:-1]])
        centres = (sums[ends] - sums[starts]) / (ends - starts)
        borders = np.searchsorted(line, (centres[1:] + centres[:-1]) / 2, side="right")
        moved = np.unique(np.concatenate([borders[borders > 0], [len(line)]]))
        if np.array_equal(moved, ends):
            break
        ends = moved
    return np.unique(line[ends - 1]).astype(np.float32)
