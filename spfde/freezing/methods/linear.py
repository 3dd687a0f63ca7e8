"""Linear freezing: the frozen share of the blocks rises linearly to the end of the training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share
from spfde.freezing.methods.scheduled import Scheduled


class Linear(Scheduled):
    """Freezes a share of the blocks that rises linearly, from 0 at `start` to `fraction` at the end of the training.

    At the fraction p of the training floor(blocks * fraction * (p - start) / (1 - start)) blocks are frozen.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        epochs: length of the training.
        interval: epochs between two boundaries at which blocks freeze.
        fraction: share of the blocks that would be frozen at the very end, in (0, 1].
        start: fraction of the training at which freezing begins, in [0, 1).

    Raises:
        TypeError, ValueError: as `Freezer`; `start` is out of its range.

    Source: MosaicML Composer, Layer Freezing, whose `freeze_level` is `fraction`.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        epochs: int = 160,
        interval: int = 1,
        fraction: float = 2 / 3,
        start: float = 0.5,
    ) -> None:
        check_share("start", start, "[0, 1)", 0.5)
        check_share("fraction", fraction, "(0, 1]", 2 / 3)
        self.start, self._rising = start, fraction * len(blocks)
        super().__init__(model, blocks, epochs=epochs, interval=interval, fraction=fraction)

    def _starts(self) -> list[float]:
        ramp = self.epochs * (1 - self.start)
        return [self.epochs * self.start + ramp * (place + 1) / self._rising for place in range(self._most)]

    def _why(self) -> str:
        return (
            f"the frozen share rises from 0 at {self.start:.0%} of the training to {self._rising:.3g} blocks at its end"
        )
