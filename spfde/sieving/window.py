"""What a sample showed of itself within one interval: presentations, correct ones, forgetting events, loss.

The bookkeeping is in numpy: on a batch of 64 its calls cost a fraction of torch's, and this runs at every step. It
takes 9 bytes a sample, so that ten million of them fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

LAST, EVER = 1, 2  # bits of `right`: the latest presentation was correct; one of the interval was
MOST = np.iinfo(np.uint16).max
HARDER = np.uint64(32)  # bits of a key below its forgetting events


class Window:
    """Counters of every sample since the last reset.

    Attributes:
        shown, forgotten: uint16 [num_samples]: presentations, forgetting events; they stop past 32,767.
        loss: float32 [num_samples]: sum of losses.
        right: uint8 [num_samples]: bits LAST and EVER.
        judged: whether every presentation said if its prediction was right.
    """

    def __init__(self, num_samples: int) -> None:
        self.shown, self.forgotten = np.zeros(num_samples, np.uint16), np.zeros(num_samples, np.uint16)
        self.loss, self.right = np.zeros(num_samples, np.float32), np.zeros(num_samples, np.uint8)
        self.judged = True

    def reset(self) -> None:
        """Sets every counter to zero."""
        for counter in (self.shown, self.forgotten, self.loss, self.right):
            counter.fill(0)
        self.judged = True

    def state_dict(self) -> dict[str, Any]:
        """Copies of the counters."""
        arrays = {"shown": self.shown, "forgotten": self.forgotten, "loss": self.loss, "right": self.right}
        return {**{name: torch.from_numpy(each.copy()) for name, each in arrays.items()}, "judged": self.judged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values."""
        self.shown, self.forgotten, self.loss, self.right = (
            state[name].numpy().copy() for name in ("shown", "forgotten", "loss", "right")
        )
        self.judged = state["judged"]

    def add(self, samples: np.ndarray, loss: np.ndarray, correct: np.ndarray | None) -> None:
        """Counts presentations in batch order; all arguments [n], a sample may appear several times.

        A forgetting event is a wrong presentation right after a correct one of the same sample.
        """
        np.add.at(self.loss, samples, loss)
        if correct is None:
            self.judged = False
            forgot = np.zeros(len(samples), bool)
        else:
            order = samples.argsort(kind="stable")
            samples, correct = samples[order], correct[order]
            before = (self.right[samples] & LAST).astype(bool)
            np.copyto(before[1:], correct[:-1], where=samples[1:] == samples[:-1])
            forgot = before > correct
            np.bitwise_or.at(self.right, samples, correct.astype(np.uint8) * EVER)
            self.right[samples] = (self.right[samples] & EVER) | correct  # of repeated indices the last one stays
        for counter, by in ((self.shown, np.ones(len(samples), np.uint16)), (self.forgotten, forgot.astype(np.uint16))):
            room = counter[samples] <= MOST // 2  # repeats of a batch cannot carry one over the end
            np.add.at(counter, samples[room], by[room])

    def mean_loss(self, samples: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Mean loss of `samples`, all by default: float32 [n]; 0 for those that were not shown."""
        return self.loss[samples] / np.maximum(self.shown[samples], 1)

    def hardness(self, samples: np.ndarray) -> np.ndarray:
        """Keys uint64 [n] that sort `samples` from easy to hard; those that were not shown come last, with `hidden`.

        Fewest forgetting events first, a sample that was never correct after all others (it has not been learnt);
        then the lower mean loss. Where predictions are neither right nor wrong (regression, soft labels), the mean loss
        alone.
        """
        keys = ordered(self.mean_loss(samples)).astype(np.uint64)
        if self.judged:
            forgotten = self.forgotten[samples]
            forgotten[(self.right[samples] & EVER) == 0] = MOST
            keys |= forgotten.astype(np.uint64) << HARDER
        keys[self.shown[samples] == 0] = hidden(keys)
        return keys


def hidden(keys: np.ndarray) -> np.unsignedinteger:
    """The key of what is never chosen: the largest of its type."""
    return keys.dtype.type(np.iinfo(keys.dtype).max)


def ordered(values: np.ndarray) -> np.ndarray:
    """Keys uint32 [n] that sort as `values` float32 [n] do; -0 is 0, and NaN is `hidden`."""
    bits = (values + np.float32(0)).view(np.uint32)
    keys = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(2**31))  # flip all bits of a negative one
    keys[np.isnan(values)] = hidden(keys)
    return keys


def lowest(keys: np.ndarray, limit: int, *, in_order: bool = True) -> np.ndarray:
    """Rows of the `limit` lowest keys [n], of equal ones the first rows; never a `hidden` one.

    Selects before it sorts, lowest first and equal ones by row, or does not sort if not `in_order`. Ten million keys
    take a fraction of a second.
    """
    limit = min(limit, len(keys) - int(np.count_nonzero(keys == hidden(keys))))
    if limit <= 0:
        return np.empty(0, np.int64)
    last = np.partition(keys, limit - 1)[limit - 1]
    rows = np.flatnonzero(keys < last)
    rows = np.concatenate([rows, np.flatnonzero(keys == last)[: limit - len(rows)]])
    return rows[keys[rows].argsort(kind="stable")] if in_order else rows
