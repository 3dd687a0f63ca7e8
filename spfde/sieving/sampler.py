"""A sampler over the active samples of an epoch: one seeded order, shared out to the ranks, resumed where it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler

from spfde.sieving.checks import check_number
from spfde.sieving.ranks import Ranks
from spfde.sieving.shuffle import derived, shuffled

AT_ONCE = 2**16  # samples that an iterator holds as Python numbers
SHARED_OUT = "try rank=0, world=1 where the trainer shares batches out itself (Accelerate)"


class ActiveSampler(DistributedSampler):
    """Iterates this rank's shard of the epoch's active samples, shuffled by (seed, epoch, active).

    A DistributedSampler by kind, for trainers that put one around every other sampler (Lightning); it shares none of
    its code. Arguments and errors: those of `Sieve`.
    """

    def __init__(self, num_samples: int, seed: int, rank: int | None, world: int | None, group: Any) -> None:
        self.num_samples, self.seed = check_number("num_samples", num_samples, 1), check_number("seed", seed, 0)
        self.epoch = 0
        ranks = Ranks.of(rank, world, group)
        self._told_ranks, self._group = (None if rank is None else ranks), group
        self._choose(torch.arange(num_samples))
        self._begin(np.zeros(num_samples, bool))

    @property
    def _ranks(self) -> Ranks:
        """As told, else torch.distributed's: a sieve may be made before the processes find one another."""
        return self._told_ranks or Ranks.of(None, None, self._group)

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
        return (sample for chunk in self._shard().split(AT_ONCE) for sample in chunk.tolist())

    def __len__(self) -> int:
        """Samples that this rank iterates in an epoch."""
        if sys._getframe(1).f_code is DistributedSampler.__init__.__code__:
            raise TypeError(
                "expected a data set in DistributedSampler, got a sieve, whose samples it would take for others; try "
                "the sieve itself as DataLoader(sampler=...): it shares its order out to the ranks"
            )
        return self._ranks.length(self._volume)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: a sieve counts its epochs by `end_epoch`, trainers that call this from their own start."""

    def _shard(self) -> torch.Tensor:
        """This rank's samples of the epoch, or of what a resumed one has left: int64 [n]."""
        order = self.order()
        return self._ranks.shard(order, self._rest(order))

    def _rest(self, order: torch.Tensor) -> torch.Tensor:
        """Of `order` int64 [active] what was not shown before the epoch was resumed."""
        return order if self._before is None else order[~torch.from_numpy(self._before[order.numpy()])]

    def _choose(self, active: torch.Tensor) -> None:
        """Makes `active`, int64 [active], distinct, the samples of the epoch.

        Raises:
            ValueError: there is none.
        """
        if not len(active):
            raise ValueError("expected at least one active sample, got none; try a smaller fraction")
        self._is_active = np.zeros(self.num_samples, bool)
        self._is_active[active.numpy()] = True
        self._volume = len(active)
        self._mine: np.ndarray | None = None  # this rank's shard, once it is asked for

    def _begin(self, seen: np.ndarray) -> None:
        """Begins the epoch, or goes on with it after `seen` bool [num_samples], which is kept."""
        self._seen, self._presented = seen, int(np.count_nonzero(seen))
        self._before = seen.copy() if self._presented else None
        self._first: np.ndarray | None = np.empty(0, np.int64)  # what was shown, until it is two samples
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
            if self._mine is None or self._first is not None:
                shard = self._shard().numpy()
                if self._first is not None:
                    _check_opening(np.concatenate([self._first, samples]), shard)
                self._mine = np.zeros(self.num_samples, bool)
                self._mine[shard] = True
            mine = self._mine[samples]
            if not mine.all():
                raise ValueError(
                    f"expected samples of rank {self.rank}'s shard, got {samples[~mine][0]}, which is another's; "
                    f"{SHARED_OUT}"
                )

    def _check_opened(self, own: np.ndarray, samples: np.ndarray, gathered: bool) -> None:
        """The first samples of an epoch, int64 [n] of all ranks: a loader shows them which begins where the sieve does.

        Raises:
            ValueError: another one keeps the place as well, or nobody shares the samples out.
        """
        if self._first is None or not len(samples):
            return
        first = np.concatenate([self._first, samples if self.world == 1 else own])
        if self.world == 1 and self._before is not None:
            _check_opening(first, self._rest(self.order()).numpy())
        processes, fills = self._ranks.gathering, self._presented + len(samples) > self._volume
        if self.world == 1 < processes and not (gathered or fills or len(samples) % processes):
            by_rank = samples.reshape(-1, processes)
            if (by_rank == by_rank[:, :1]).all():
                raise ValueError(
                    f"expected {processes} ranks to show samples of their own, got {samples[0]} on all of them; try a "
                    "sieve without rank= and world=, which shares its samples out"
                )
        self._first = first if (first == first[:1]).all() else None

    def _advance(self, samples: np.ndarray) -> np.ndarray:
        """Takes note that `samples` int64 [n] of all ranks were shown; bool [n]: not just to fill shards up.

        Ranks fill up, the sieve's or a trainer's, in the one step that passes the end of the epoch.
        """
        left = self._volume - self._presented
        counts = np.ones(len(samples), bool)
        if 0 < left < len(samples) and max(self.world, self._ranks.gathering) > 1:
            counts[:] = False
            counts[np.unique(samples, return_index=True)[1]] = True
            counts &= ~self._seen[samples]
        self._seen[samples] = True
        self._presented += int(np.count_nonzero(counts))
        return counts


def asked_by_a_loader() -> bool:
    """Whether torchdata's StatefulDataLoader has called the method that asks this."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith("torchdata.")


def _check_opening(samples: np.ndarray, shard: np.ndarray) -> None:
    """The first samples, int64 [n], of a loader over `shard` [m].

    Raises:
        ValueError: they are a later part of the shard. Any other order is the loader's own, of like lengths for
            example, and one sample alone does not tell.
    """
    if np.array_equal(shard[: len(samples)], samples) or (samples == samples[:1]).all():
        return
    places = np.flatnonzero(np.isin(shard, samples))
    breaks = np.flatnonzero(np.diff(places) > 1)
    if len(places) < len(np.unique(samples)) or not len(places) or len(breaks) > 1:
        return
    begin = places[0]
    if len(breaks):  # what fills the last batch up comes from the front
        begin = places[breaks[0] + 1] if begin == 0 and places[-1] == len(shard) - 1 else 0
    if begin:
        raise ValueError(
            f"expected the first samples to hold {shard[0]}, got those from place {begin} on; {SHARED_OUT}, "
            "and after resuming a loader that skips nothing by itself: the sieve does"
        )
