"""When a run is kept: at the end of every epoch, every so many steps, and before it stops because it was asked to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spfde.train import checkpoint, files
from spfde.train.interrupts import Interrupted, Interrupts
from spfde.train.metrics import Epoch, Underway
from spfde.train.session import Session


class Keeper:
    """Keeps one run in a directory; without one, nothing is kept and no signal is looked at.

    Args:
        out: run directory, or None.
        session: what is trained.
        history: records of the epochs behind, as the loop goes on extending them.
        interrupts: what asks the run to stop.
    """

    def __init__(self, out: Path | None, session: Session, history: list[Epoch], interrupts: Interrupts) -> None:
        self.out, self.session, self.history, self.interrupts = out, session, history, interrupts
        self._path: Path | None = None

    def step(self, underway: Underway) -> None:
        """Follow a step of the epoch under way.

        Raises:
            Interrupted: the run was asked to stop; it is kept.
            WriteError: a checkpoint cannot be written.
        """
        every = self.session.recipe.checkpoint_every_steps
        if every and underway.step % every == 0:
            self._save(underway.epoch, underway.step, self.history, underway)
        self.pause(underway)

    def pause(self, underway: Underway) -> None:
        """Stop here if the run was asked to; raises as `step` does."""
        if self.out is None or self.interrupts.asked is None:
            return
        self._save(underway.epoch, underway.step, self.history, underway)
        self._stop(f"in epoch {underway.epoch} after step {underway.step}")

    def epoch(self, done: Epoch) -> None:
        """Keep the run after an epoch; raises WriteError."""
        self._save(done.epoch, None, [*self.history, done], None)

    def between(self, done: Epoch) -> None:
        """Stop after an epoch, whose record is written, if the run was asked to; raises Interrupted."""
        if self.out is not None and self.interrupts.asked is not None:
            self._stop(f"after epoch {done.epoch}")

    def _stop(self, where: str) -> None:
        asked = self.interrupts.asked
        raise Interrupted(
            f"stopped by {asked.name} {where} (from 0), kept in {self._path}; resume goes on there", asked
        )

    def _save(self, epoch: int, step: int | None, history: list[Epoch], underway: Underway | None) -> None:
        if self.out is None:
            return
        path = files.checkpoint_path(self.out, epoch, step)
        if path == self._path:
            return  # a periodic one was written at this very step
        session = self.session
        state = {
            "recipe": session.recipe.to_dict(),
            "samples": len(session.train),
            "layout": dataclasses.asdict(session.layout),
            "machine": session.machine,
            "history": [item.to_dict() for item in history],
            "underway": underway and underway.to_dict(),
            "session": session.state_dict(),
        }
        checkpoint.save(path, state)
        checkpoint.prune(self.out, session.recipe.keep_checkpoints)
        self._path = path
