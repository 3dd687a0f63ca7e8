"""Static freezing: the first blocks, from the start or from an epoch on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_whole
from spfde.freezing.methods.scheduled import Scheduled


class Static(Scheduled):
    """Freezes the first blocks all at once: from the start, as in transfer learning, or from an epoch on.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        epochs: length of the training.
        fraction: share of the blocks to freeze, in (0, 1].
        count: how many of them to freeze, instead of `fraction`.
        start: the epoch before which they freeze.

    Raises:
        TypeError, ValueError: as `Freezer`; `count` or `start` is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        epochs: int = 160,
        fraction: float = 2 / 3,
        count: int | None = None,
        start: int = 0,
    ) -> None:
        check_whole("epochs", epochs, 1)
        check_whole("start", start, 0, epochs - 1)
        if count is not None:
            check_whole("count", count, 1, len(blocks))
            fraction = count / len(blocks)
        self.start = start
        super().__init__(model, blocks, epochs=epochs, fraction=fraction)

    def _starts(self) -> list[float]:
        return [self.start] * self._most

    def _why(self) -> str:
        return f"the first {self._most} blocks are frozen from epoch {self.start} on"
