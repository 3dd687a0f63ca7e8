"""When a run is kept, and how it is taken up again: at every epoch's end, every so many steps, before it stops."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spfde.train import checkpoint, record, run_dir
from spfde.train.device import Layout
from spfde.train.session import Inputs, Session
from spfde.train.stats import Epoch, EpochProgress
from spfde.train.stops import Interrupted, Interrupts


class Trained(Protocol):
    """What a run trains and a checkpoint keeps: one training, or the rounds of imp."""

    session: Session

    @property
    def checkpoint_size(self) -> int:
        """At least the bytes of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values."""


@dataclass(frozen=True)
class Start:
    """Where a run starts: what is trained, the epochs behind, the one under way, and what there is to tell."""

    trained: Trained
    history: list[Epoch]
    underway: EpochProgress | None = None
    warnings: tuple[str, ...] = ()


def start_or_resume(inputs: Inputs, resume: bool, make: Callable[[Inputs, Layout | None], Trained]) -> Start:
    """Make a run, or take it up where its checkpoints left it.

    Raises:
        ValueError: an option does not fit the data or the network.
        CheckpointError: no checkpoint to resume can be read, or it belongs to another run.
        WriteError: there is no space for a checkpoint.
    """
    recipe, out, ranks = inputs.recipe, inputs.out, inputs.ranks
    if out is None:
        return Start(make(inputs, None), [])
    if not resume or ranks.once(lambda: run_dir.begun(out)):
        if resume:
            ranks.once(lambda: record.require_begun(out, recipe))
        trained = make(inputs, None)
        size = trained.checkpoint_size
        ranks.once(lambda: _begin(out, trained, size))
        return Start(trained, [])
    kept, refused = ranks.once(lambda: checkpoint.newest(out))
    checkpoint.require_same_recipe(kept.recipe, recipe, kept.path)
    trained = make(dataclasses.replace(inputs, seconds=kept.seconds), kept.layout)
    checkpoint.require_same_samples(kept.samples, len(trained.session.train), kept.path)
    trained.load_state_dict(kept.session)
    size = trained.checkpoint_size
    told, history = ranks.once(lambda: _go_on(out, kept, refused, size))
    warnings = told + resume_warnings(kept.machine, trained.session.machine)
    return Start(trained, [Epoch.from_dict(values) for values in history], kept.underway, tuple(warnings))


def _begin(out: Path, trained: Trained, size: int) -> None:
    run_dir.require_space(out / run_dir.CHECKPOINTS, size)
    run_dir.clear(out)
    record.write_run(out, trained.session)


def _go_on(
    out: Path, kept: checkpoint.Kept, refused: Mapping[Path, checkpoint.CheckpointError], size: int
) -> tuple[list[str], list[dict[str, Any]]]:
    run_dir.sweep(out)
    run_dir.require_space(out / run_dir.CHECKPOINTS, size)
    told = checkpoint.set_aside(refused, kept.path)
    return told, record.restore_metrics(out, [item.to_dict() for item in kept.history])


def resume_warnings(kept: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say for what reasons a run kept on one machine may not go on to the same bits on another."""
    return [
        f"expected {name} {kept.get(name)!r}, as the checkpoint was made with, got {value!r}:"
        " the numbers may differ in their last bits from here on"
        for name, value in here.items()
        if kept.get(name, 1 if name == "ranks" else None) != value
        and not (name == "isa" and None in (kept.get(name), value))  # a GPU has none
    ]


class Checkpointer:
    """Keeps one run in a directory; without one, nothing is kept and no signal is looked at.

    Of many ranks, the first one writes, and all stop at the step at which a signal has reached any of them.

    Args:
        out: run directory, or None.
        trained: what is kept.
        history: records of the epochs behind, as the loop goes on extending them.
        interrupts: what asks the run to stop.
        by_epoch: whether epochs and steps are kept and stopped at; else only what calls `save` says.
    """

    def __init__(
        self, out: Path | None, trained: Trained, history: list[Epoch], interrupts: Interrupts, by_epoch: bool = True
    ) -> None:
        self.out, self.trained, self.history, self.interrupts = out, trained, history, interrupts
        self.by_epoch, self.ranks = by_epoch and out is not None, trained.session.ranks
        self._path: Path | None = None

    def step(self, underway: EpochProgress) -> None:
        """Follow a step of the epoch under way.

        Raises:
            Interrupted: the run was asked to stop; it is kept.
            WriteError: a checkpoint cannot be written.
        """
        every = self.trained.session.recipe.checkpoint_every_steps
        if self.by_epoch and every and underway.step % every == 0:
            self.save(underway.epoch, underway=underway)
        self.pause(underway)

    def pause(self, underway: EpochProgress) -> None:
        """Stop here if the run was asked to; raises as `step` does."""
        asked = self._asked()
        if asked is None:
            return
        self.save(underway.epoch, underway=underway)
        self._stop(asked, f"in epoch {underway.epoch} after step {underway.step}")

    def epoch(self, done: Epoch) -> None:
        """Keep the run after an epoch; raises WriteError."""
        if self.by_epoch:
            self.save(done.epoch, [*self.history, done])

    def append(self, name: str, values: dict[str, Any]) -> None:
        """Append a line to a file of the run; raises WriteError."""
        if self.out is not None:
            self.ranks.once(lambda: run_dir.append_line(self.out / name, values))

    def write(self, name: str, values: Any) -> None:
        """Write a file of the run; raises WriteError."""
        if self.out is not None:
            self.ranks.once(lambda: run_dir.write_json(self.out / name, values))

    def between(self, done: Epoch) -> None:
        """Stop after an epoch, whose record is written, if the run was asked to; raises Interrupted."""
        asked = self._asked()
        if asked is not None:
            self._stop(asked, f"after epoch {done.epoch}")

    def save(self, epoch: int, history: list[Epoch] | None = None, underway: EpochProgress | None = None) -> None:
        """Keep the run after an epoch, or within one under way; raises WriteError."""
        if self.out is None:
            return
        path = run_dir.checkpoint_path(self.out, epoch, underway and underway.step)
        if path == self._path:
            return  # a periodic one was written at this very step
        session = self.trained.session
        state = {
            **session.description(),
            "history": [item.to_dict() for item in (self.history if history is None else history)],
            "underway": underway and underway.to_dict(),
            "session": self.trained.state_dict(),
        }
        self.ranks.once(lambda: self._write(path, state))
        self._path = path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.save(path, _on_cpu(state))
        checkpoint.prune(self.out, self.trained.session.recipe.keep_checkpoints)

    def _asked(self) -> signal.Signals | None:
        """Return the signal that asked any rank to stop."""
        number = self.ranks.largest(self.interrupts.asked or 0) if self.by_epoch else 0
        return signal.Signals(number) if number else None

    def _stop(self, asked: signal.Signals, where: str) -> None:
        raise Interrupted(
            f"stopped by {asked.name} {where} (from 0), kept in {self._path}; resume goes on there", asked
        )


def _on_cpu(value: Any) -> Any:
    """The same nest with its tensors in main memory, so that a machine without the GPU reads it."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value
