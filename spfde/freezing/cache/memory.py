"""The rows of a store in memory: room is taken only by those that are written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from spfde.freezing.cache.row import Row


class Memory:
    """`capacity` rows, by slot. codes: [capacity, *physical]; scales: [capacity, 2, channels] or None.

    holders: int64 [capacity], the key of the sample in each slot plus one; 0 is none.
    """

    def __init__(self, row: Row, capacity: int) -> None:
        self.codes = _untouched((capacity, *row.physical), row.stored)
        self.scales = _untouched((capacity, 2, row.channels), torch.float32) if row.channels else None
        self.holders = np.zeros(capacity, np.int64)

    def put(self, slots: Sequence[int], keys: Sequence[int], codes: Tensor, scales: Tensor | None) -> None:
        """Writes rows [n, *physical] into slots, one key each."""
        where = torch.tensor(slots)
        self.codes.index_copy_(0, where, codes)
        if scales is not None:
            self.scales.index_copy_(0, where, scales)
        self.holders[slots] = np.array(keys) + 1

    def forget(self, slots: Sequence[int]) -> None:
        """Empties slots."""
        self.holders[slots] = 0

    def damaged(self, slots: Sequence[int]) -> list[int]:
        """Those of the slots whose content is not what was written: none, memory is trusted."""
        return []

    def close(self) -> None:
        """Lets go of the memory."""
        self.codes, self.scales = self.codes[:0].clone(), None
        self.holders = self.holders[:0].copy()


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in pages of their own: taken when they are written, given back with the tensor, whatever malloc keeps."""
    size = prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"expected room for {size} bytes of frozen activations, got none, try a budget") from error
    return torch.frombuffer(pages, dtype=dtype).view(shape)
