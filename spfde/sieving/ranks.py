"""Sieves on many processes: equal shards of one order, and batches gathered so that all of them decide alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from spfde.sieving.checks import check_number


@dataclass(frozen=True)
class Batch:
    """Presentations in one array each: samples int64 [n], figures float32 [n], correct bool [n] or None."""

    samples: np.ndarray
    figures: np.ndarray
    correct: np.ndarray | None

    def take(self, rows: np.ndarray) -> Batch:
        """Those of `rows`, an index or a mask."""
        correct = None if self.correct is None else self.correct[rows]
        return Batch(self.samples[rows], self.figures[rows], correct)


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`, which share the samples of an epoch; `group` is that of torch.distributed."""

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def of(cls, rank: int | None, world: int | None, group: Any) -> Ranks:
        """As given, or those of torch.distributed.

        Raises:
            ValueError: one of rank and world is missing, or out of its range.
        """
        if (rank is None) != (world is None):
            raise ValueError(f"expected rank and world together, got rank={rank!r}, world={world!r}; try both or none")
        if rank is None or world is None:
            return cls(dist.get_rank(group), dist.get_world_size(group), group) if _distributed() else cls()
        world, rank = check_number("world", world, 1), check_number("rank", rank, 0)
        if rank >= world:
            raise ValueError(f"expected rank below world, got rank {rank} of {world}; try ranks from 0")
        size = dist.get_world_size(group) if _distributed() else world
        if world not in (1, size):
            raise ValueError(_misfit(world, size))
        return cls(rank, world, group)

    @property
    def gathering(self) -> int:
        """How many processes observe together: those of the group, whoever shares the samples out."""
        return dist.get_world_size(self.group) if _distributed() else 1

    def length(self, samples: int) -> int:
        """Samples of one shard: equal on all ranks."""
        return -(-samples // self.world)

    def shard(self, order: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """This rank's part of `rest` [n] of `order`, whose first samples fill up the last shards."""
        if self.world == 1 or not len(rest):
            return rest
        filled = order.repeat(-(-self.world // len(order)))[: -len(rest) % self.world]
        return torch.cat([rest, filled])[self.rank :: self.world]

    def gather(self, batch: Batch | None, fault: Exception | None) -> Batch:
        """The batches of all ranks as one, in the order of one process that reads the same samples.

        Every rank has to come here, also one whose batch is at fault: else the others would wait for it for ever.

        Raises:
            ValueError: another rank has a fault; this rank's own `fault` is raised as it is.
        """
        if self.gathering == 1:
            if fault is not None:
                raise fault
            if self.world > 1:
                raise ValueError(
                    f"expected a process group of {self.world} ranks to observe in, got none; try "
                    "torch.distributed.init_process_group, or observe(..., gathered=True) with the batches of all ranks"
                )
            assert batch is not None
            return batch
        if self.world not in (1, self.gathering):
            raise ValueError(_misfit(self.world, self.gathering))
        device = _device(self.group)
        n = 0 if batch is None else len(batch.samples)
        judged = int(batch is None or not n or batch.correct is not None)
        heads = _all_gather(torch.tensor([n, judged, int(fault is not None)], device=device), self.group).cpu()
        if fault is not None:
            raise fault
        if heads[:, 2].any():
            at = int(heads[:, 2].nonzero()[0])
            raise ValueError(f"expected batches without a fault on all ranks, got one on rank {at}; try its own error")
        longest = int(heads[:, 0].max())
        rows = torch.zeros(longest, 4, dtype=torch.int32)  # both halves of the index, the loss's bits, correct
        if batch is not None and n:
            rows[:n, :2] = torch.from_numpy(batch.samples.copy()).view(torch.int32).view(n, 2)
            rows[:n, 2] = torch.from_numpy(batch.figures.copy()).view(torch.int32)
            if batch.correct is not None:
                rows[:n, 3] = torch.from_numpy(batch.correct.astype(np.int32))
        everyone = _all_gather(rows.to(device), self.group).cpu().transpose(0, 1)  # [longest, ranks, 4]
        there = torch.arange(longest)[:, None] < heads[:, 0]
        merged = everyone[there].contiguous()
        return Batch(
            merged[:, :2].contiguous().view(torch.int64).view(-1).numpy(),
            merged[:, 2].contiguous().view(torch.float32).numpy(),
            merged[:, 3].bool().numpy() if bool(heads[:, 1].all()) else None,
        )


def _misfit(world: int, size: int) -> str:
    return f"expected world 1 or the {size} processes of the group, got {world}; try world={size}, or group="


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device(group: Any) -> torch.device:
    nccl = "nccl" in str(dist.get_backend(group))
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _all_gather(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The ranks' tensors [...], stacked [ranks, ...]."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, tensor, group=group)
    return torch.stack(found)
