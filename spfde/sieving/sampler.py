"""A sampler over the active samples of an epoch: one seeded order, shared out to the ranks, resumed where it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from spfde.sieving.checks import check_number
from spfde.sieving.ranks import Ranks
from spfde.sieving.shuffle import derived, shuffled

AT_ONCE = 2**16  # samples that an iterator holds as Python numbers


class ActiveSampler(Sampler[int]):
    """Iterates this rank's shard of the epoch's active samples, shuffled by (seed, epoch, active).

    Arguments and errors: those of `Sieve`.
    """

    def __init__(self, num_samples: int, seed: int, rank: int | None, world: int | None, group: Any) -> None:
        self.num_samples, self.seed = check_number("num_samples", num_samples, 1), check_number("seed", seed, 0)
        self.epoch = 0
        self._ranks = Ranks.of(rank, world, group)
        self._position = self._start = 0  # of the epoch's order: observed so far; where iterating begins
        self._choose(torch.arange(num_samples))

    @property
    def rank(self) -> int:
        """Which of the `world` equal shards is iterated here."""
        return self._ranks.rank

    @property
    def world(self) -> int:
        """How many equal shards an epoch has."""
        return self._ranks.world

    @property
    def active(self) -> torch.Tensor:
        """Samples of this epoch, of all ranks: int64 [active], ascending."""
        return torch.from_numpy(np.flatnonzero(self._is_active))

    @property
    def removed(self) -> torch.Tensor:
        """Samples that are out: int64 [out], ascending."""
        return torch.from_numpy(np.flatnonzero(~self._is_active))

    @property
    def volume(self) -> int:
        """Number of active samples, of all ranks."""
        return self._volume

    def order(self) -> torch.Tensor:
        """The active samples in this epoch's order, of all ranks: int64 [active]."""
        return shuffled(self.active, derived(self.seed, "order", self.epoch))

    def __iter__(self) -> Iterator[int]:
        shard = self._ranks.shard(self.order(), self._start)
        return (sample for chunk in shard.split(AT_ONCE) for sample in chunk.tolist())

    def __len__(self) -> int:
        """Samples that this rank iterates in an epoch."""
        if sys._getframe(1).f_code is DistributedSampler.__init__.__code__:
            raise TypeError(
                "expected a data set in DistributedSampler, got a sieve, whose samples it would take for others; try "
                "the sieve itself as DataLoader(sampler=...): it shares its order out to the ranks"
            )
        return self._ranks.length(self._volume)

    def _choose(self, active: torch.Tensor) -> None:
        """Makes `active`, int64 [active], distinct, the samples of the epoch."""
        self._is_active = np.zeros(self.num_samples, bool)
        self._is_active[active.numpy()] = True
        self._volume = len(active)
        self._mine: np.ndarray | None = None  # this rank's shard, once it is asked for

    def _begin(self, position: int) -> None:
        """Iterates from `position` of the epoch's order on."""
        self._position = self._start = min(position, self._volume)
        self._mine = None

    def _check_shown(self, samples: np.ndarray, gathered: bool) -> None:
        """Samples int64 [n] of this epoch, and unless they are `gathered` of this rank's shard.

        Raises:
            ValueError: one is not.
        """
        active = self._is_active[samples]
        if not active.all():
            raise ValueError(
                f"expected active samples, got {samples[~active][0]}, which is out in epoch {self.epoch}; "
                "try iterating this sampler, and calling end_epoch after the epoch's last observe"
            )
        if self.world > 1 and not gathered:
            if self._mine is None:
                self._mine = np.zeros(self.num_samples, bool)
                self._mine[self._ranks.shard(self.order(), self._start).numpy()] = True
            mine = self._mine[samples]
            if not mine.all():
                raise ValueError(
                    f"expected samples of rank {self.rank}'s shard, got {samples[~mine][0]}, which is another's; try "
                    "world=1, rank=0 where the trainer shares batches out itself (Accelerate), or "
                    "use_distributed_sampler=False (Lightning)"
                )

    def _advance(self, samples: np.ndarray) -> np.ndarray:
        """Takes note that `samples` int64 [n] of all ranks were shown; bool [n]: not just to fill shards up."""
        first, self._position = self._position, self._position + len(samples)
        if self.world == 1 or self._position <= self._volume:
            return np.ones(len(samples), bool)
        places = np.arange(first, self._position) - self._volume
        fills = (places >= 0) & (places < self.world)
        fills[fills] = self.order().numpy()[places[fills] % self._volume] == samples[fills]
        return ~fills
