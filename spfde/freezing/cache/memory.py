"""The rows of a store in memory: room is taken only by those that are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spfde.freezing.cache.row import Row


class Memory:
    """`capacity` rows, by slot. codes: [capacity, *physical]; scales: [capacity, 2, channels] or None.

    holders: int64 [capacity], the key of the sample in each slot plus one; 0 is none.
    """

    def __init__(self, row: Row, capacity: int) -> None:
        # torch.empty and numpy.zeros of this size are untouched pages: the system gives them when they are written.
        self.codes = torch.empty(capacity, *row.physical, dtype=row.stored)
        self.scales = torch.empty(capacity, 2, row.channels) if row.channels else None
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
