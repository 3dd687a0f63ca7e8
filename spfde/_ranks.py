"""The processes that train one model together."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """The ranks of a process group, the default one if None; alone where torch.distributed is not initialised.

    What is a collective must be called on every rank; alone, each is the identity and costs nothing.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group

    @property
    def count(self) -> int:
        """How many processes train together."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return dist.get_rank(self.group) if self.count > 1 else 0

    def part(self, samples: Tensor) -> Tensor:
        """This rank's part of a batch [n, ...]: every `count`-th sample."""
        return samples[self.rank :: self.count] if self.count > 1 else samples

    # ---- collectives over numbers and tensors ----------------------------------------------------------------------

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks; the tensor itself where there is one."""
        if self.count == 1:
            return tensor
        tensor = tensor.clone(memory_format=torch.contiguous_format)  # it may be a view of what is kept
        dist.all_reduce(tensor, group=self.group)
        return tensor / self.count

    def agree(self, flags: list[bool], any_rank: bool) -> list[bool]:
        """Each flag over all ranks: set on any of them, or on every one."""
        if self.count == 1 or not flags:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(votes, dist.ReduceOp.MAX if any_rank else dist.ReduceOp.MIN, group=self.group)
        return [bool(vote) for vote in votes.tolist()]

    def total(self, figures: list[float]) -> list[float]:
        """Each figure's sum over the ranks, in float64."""
        if self.count == 1:
            return figures
        sums = torch.tensor(figures, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def largest(self, number: int) -> int:
        """The largest number of any rank."""
        if self.count == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Writes the first rank's values into the tensors of all others."""
        self.follow(tensors, 0)

    def follow(self, tensors: Iterable[Tensor], rank: int) -> None:
        """Writes one rank's values into the tensors of all others."""
        source = rank if self.group is None else dist.get_global_rank(self.group, rank)
        for tensor in tensors if self.count > 1 else ():
            mine = tensor.detach()
            sent = mine.to(self._device) if self._device.type == "cuda" else mine
            dist.broadcast(sent, source, group=self.group)
            if sent is not mine:
                mine.copy_(sent)

    # ---- collectives over plain values -----------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order: whatever pickles."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def once(self, act: Callable[[], T]) -> T:
        """Has the first rank alone act, as for what is written; what it returns or raises is that of all."""
        if self.count == 1:
            return act()
        sent: list[Any] = [None]
        if self.rank == 0:
            try:
                sent[0] = _packed((act(), None))
            except Exception as error:
                sent[0] = _packed((None, error))
        dist.broadcast_object_list(sent, self._first, group=self.group)
        done, fault = torch.load(io.BytesIO(sent[0]), weights_only=False)
        if fault is not None:
            raise fault
        return done

    def check(self, fault: Exception | None) -> None:
        """Raises on all ranks the fault of the first one that has any."""
        found = next((each for each in self.gather(fault) if each is not None), None)
        if found is not None:
            raise found

    def check_same(self, what: Mapping[str, int], remedy: str) -> None:
        """Raises on all ranks where a number differs between them.

        Raises:
            RuntimeError: one does, by its name.
        """
        if self.count == 1:
            return
        first, *others = self.gather(dict(what))
        for rank, theirs in enumerate(others, 1):
            name = next((name for name in {**first, **theirs} if first.get(name) != theirs.get(name)), None)
            if name is not None:
                raise RuntimeError(
                    f"expected {name!r} to be the same on all ranks, got another on rank {rank}, try {remedy}"
                )

    @property
    def _device(self) -> torch.device:
        """Where a collective wants its numbers."""
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def _first(self) -> int:
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    def __getstate__(self) -> dict[str, Any]:
        return {"group": None}  # a process group cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.group = state["group"]


def _packed(value: Any) -> bytes:
    """A value as torch saves it: its pickles of tensors of some precisions cannot be read."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


class Alone(Ranks):
    """One process, whatever torch.distributed says."""

    @property
    def count(self) -> int:
        """One."""
        return 1


ALONE = Alone()
