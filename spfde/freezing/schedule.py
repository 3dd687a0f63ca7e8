"""When which block is frozen, and what that saves: arithmetic only."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

REPEATS = 2  # how often one change of a block is printed


@dataclass(frozen=True)
class Change:
    """What happens to a block before an epoch begins: it freezes, or (frozen False) is given back to the training."""

    epoch: int
    block: str
    frozen: bool = True


@dataclass(frozen=True)
class FreezeSchedule:
    """When which block is frozen.

    Attributes:
        changes: in the order in which they happen.
        saving: share of the whole training's cost, in FLOPs or in seconds, that the schedule saves.
        reason: why it is as it is.
    """

    changes: tuple[Change, ...]
    saving: float
    reason: str

    @property
    def freezes(self) -> tuple[tuple[int, str], ...]:
        """(epoch, block name) of every freeze, in order."""
        return tuple((change.epoch, change.block) for change in self.changes if change.frozen)

    def frozen(self, epoch: int) -> tuple[str, ...]:
        """Blocks that are frozen during an epoch, in freezing order."""
        *_, last = self.sets(epoch + 1)
        return last

    def sets(self, epochs: int) -> Iterator[tuple[str, ...]]:
        """`frozen` of each epoch."""
        names: dict[str, None] = {}
        waiting = deque(self.changes)
        for epoch in range(epochs):
            while waiting and waiting[0].epoch <= epoch:
                change = waiting.popleft()
                names.pop(change.block, None)
                if change.frozen:
                    names[change.block] = None
            yield tuple(names)

    def saves(self, names: Sequence[str], costs: Sequence[float], epochs: int) -> float:
        """The share of the training's cost that it saves.

        Args:
            names: blocks, front to back.
            costs: of a step with the first 0, 1, ... of them frozen. Of what is frozen behind an active block nothing
                is counted as saved.
            epochs: length of the training.
        """
        fronts = [front_of(names, frozen) for frozen in self.sets(epochs)]
        return 1 - sum(costs[front] for front in fronts) / (costs[0] * epochs)

    def __str__(self) -> str:
        """One line for each epoch in which something changes, and the reason; what goes on as before is counted."""
        width = len(str(self.changes[-1].epoch))
        seen: Counter[tuple[str, bool]] = Counter()
        lines, more = [], 0
        for (epoch, frozen), group in groupby(self.changes, key=lambda change: (change.epoch, change.frozen)):
            names = [change.block for change in group]
            seen.update((name, frozen) for name in names)
            if min(seen[name, frozen] for name in names) > REPEATS:
                more += 1
            else:
                lines.append(f"epoch {epoch:>{width}}  {'freeze' if frozen else 'unfreeze'} {', '.join(names)}")
        if more:
            lines.append(f"... and {more} more like these, to epoch {self.changes[-1].epoch}")
        return "\n".join([*lines, self.reason])


def front_of(names: Sequence[str], frozen: Collection[str]) -> int:
    """How many of `names`, blocks front to back, are frozen without a gap from the first one on."""
    return next((i for i, name in enumerate(names) if name not in frozen), len(names))


def saved(backward: Sequence[float], first_epoch: float, *, epochs: int, interval: int) -> float:
    """sum_i backward[i] * epochs block i stays frozen, block i being frozen at first_epoch + i * interval."""
    return sum(b * max(0, epochs - first_epoch - i * interval) for i, b in enumerate(backward))


def exact_first_epoch(backward: Sequence[float], target: float, *, epochs: int, interval: int) -> float:
    """The real-valued first epoch at which `saved` equals `target`; may be negative (unreachable).

    T_frz = T - (target + dT * sum_i i * b_i) / sum_i b_i over the blocks that get frozen before the end.
    """
    for count in range(len(backward), 0, -1):
        rate, moment = sum(backward[:count]), sum(i * b for i, b in enumerate(backward[:count]))
        first = epochs - (target + interval * moment) / rate if rate else -math.inf
        if first + (count - 1) * interval <= epochs:
            return first
    return -math.inf
