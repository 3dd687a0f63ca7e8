"""The processes that train one model together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The ranks of a process group, the default one if None; alone where torch.distributed is not initialised."""

    def __init__(self, group: Any = None) -> None:
        self.group = group

    @property
    def count(self) -> int:
        """How many processes train together."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

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
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        votes = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(votes, dist.ReduceOp.MAX if any_rank else dist.ReduceOp.MIN, group=self.group)
        return [bool(vote) for vote in votes.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        return {"group": None}  # a process group cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.group = state["group"]
