"""What every freezing method offers to the training loop."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from spfde.freezing.block import Block


@runtime_checkable
class Freezer(Protocol):
    """Decides which blocks to freeze, and freezes them.

    The loop calls `due` and `begin_epoch` before an epoch's first step and `end_epoch` after its last. `due`
    has no effect, so that a loop can settle the topology of what is about to freeze.
    """

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks frozen so far, in freezing order."""

    @property
    def reason(self) -> str:
        """Why the blocks freeze when they do, in one sentence."""

    def due(self, epoch: int) -> list[Block]:
        """Blocks that `begin_epoch(epoch)` would freeze."""

    def begin_epoch(self, epoch: int) -> list[str]:
        """Freezes what is due; names of the blocks frozen now."""

    def end_epoch(self) -> None:
        """Takes note that an epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: what a resumed run needs to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state and freezes what it says is frozen."""
