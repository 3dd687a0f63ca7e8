"""What freezers share whose schedule is known beforehand: from which epoch on each block may freeze."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_whole
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.report import Sets
from spfde.freezing.schedule import Change, FreezeSchedule
from spfde.levers import EpochStart, Event


class Scheduled(Freezer):
    """Freezes each block at the first boundary at or after an epoch that is known beforehand.

    A subclass gives the epochs in `_starts`, front to back and not decreasing, and says why in `_why`.
    """

    needs: Collection[type[Event]] = frozenset({EpochStart})

    def __init__(
        self, model: nn.Module, blocks: Sequence[FreezeBlock], *, epochs: int, interval: int = 1, fraction: float = 1.0
    ) -> None:
        check_whole("epochs", epochs, 1)
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        self.epochs = epochs
        boundaries = [math.ceil(start / interval - 1e-9) * interval for start in self._starts()]
        self.plan: tuple[tuple[int, str], ...] = tuple(
            (epoch, block.name)
            for epoch, block in zip(boundaries, self.blocks[: self._most], strict=True)
            if epoch < epochs
        )
        self._reason = self._why()

    @abstractmethod
    def _starts(self) -> list[float]:
        """The epoch, a real number, from which each of the blocks that may freeze may do so."""

    @abstractmethod
    def _why(self) -> str:
        """Why the schedule is what it is."""

    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        due = next((start for start, name in self.plan if name == block.name), None)
        if due is None:
            return Verdict(False, f"its turn does not come in {self.epochs} epochs")
        return Verdict(epoch >= due, f"due at epoch {due}: {self._why()}")

    def _planned(self) -> Sets:
        changes = tuple(Change(epoch, name) for epoch, name in self.plan)
        return tuple(FreezeSchedule(changes, 0.0, "").sets(self.epochs))

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "epochs": self.epochs, "plan": [list(each) for each in self.plan]}
