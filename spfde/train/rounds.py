"""Iterative magnitude pruning as a run: trainings one after the other, each of a sparser ticket, kept after each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from spfde.topology import Lottery
from spfde.train import checkpoint, files, randomness, record
from spfde.train.interrupts import Interrupts
from spfde.train.keeper import Keeper
from spfde.train.loop import run_epoch
from spfde.train.metrics import Epoch, Event
from spfde.train.optimizer import Factory, make, parameter_groups, recipe_optimizer
from spfde.train.progress import Progress
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.session import Session, build


class Rounds:
    """One run of method imp: a `Lottery` whose trainings are epochs of the ordinary loop, numbered throughout."""

    def __init__(
        self,
        base: Session,
        out: Path | None,
        optimizer: Factory | None,
        on_epoch: Callable[[Epoch], None] | None,
        progress: Progress,
    ) -> None:
        recipe = base.recipe
        self.base, self.out, self.optimizer = base, out, optimizer or recipe_optimizer(recipe)
        self.on_epoch, self.progress = on_epoch, progress
        self.history: list[Epoch] = []
        self.lottery = Lottery(
            base.model,
            self._train,
            sparsity=recipe.sparsity,
            rounds=recipe.rounds,
            epochs=recipe.epochs,
            rewind_epoch=recipe.rewind_epoch,
            rewind=recipe.rewind,
            distribution=recipe.distribution,
            pattern=recipe.pattern,
            example_input=base.example,
        )

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rounds that are done, in plain values: round, sparsity, and what its training came to."""
        return [{"round": row.number, "sparsity": row.sparsity, **row.outcome} for row in self.lottery.table]

    def run(self) -> None:
        """Train the rounds that are left, each kept when it is done."""
        while not self.lottery.done:
            done = self.lottery.step()
            accuracy = f"test accuracy {done.outcome['test_accuracy']:.1%}"
            told = f"{done.number} of {self.base.recipe.rounds}, {done.sparsity:.1%} sparsity, {accuracy}"
            reason = f"trained to epoch {self.base.recipe.epochs}"
            self.progress.event(len(self.history) - 1, Event("round", told, reason))
            if self.out is not None:
                files.write_json(self.out / files.ROUNDS, self.table)
                self._keep()

    def _train(self, model: nn.Module, first: int, last: int) -> dict[str, Any]:
        randomness.seed(self.base.recipe.seed)  # a round depends on the weights it starts from, not on those before it
        model = self.base.layout.model(model)
        optimizer = make(self.optimizer, parameter_groups(model, None, {}))
        session = dataclasses.replace(self.base, model=model, optimizer=optimizer)
        keeper = Keeper(None, session, [], Interrupts())
        begun = len(self.history) if self.lottery.table else 0  # round 0 may come in two parts
        for epoch in range(len(self.history), len(self.history) + last - first):
            done = run_epoch(session, epoch, keeper, self.progress)
            self.history.append(done)
            if self.out is not None:
                files.append_line(self.out / files.METRICS, done.to_dict())
            self.progress.epoch(done)
            if self.on_epoch is not None:
                self.on_epoch(done)
        trained = self.history[begun:]
        return {
            "test_accuracy": trained[-1].test_accuracy,
            "training_seconds": math.fsum(item.training_seconds for item in trained),
            "flops": math.fsum(item.flops for item in trained),
        }

    def _keep(self) -> None:
        state = {
            "recipe": self.base.recipe.to_dict(),
            "samples": len(self.base.train),
            "layout": dataclasses.asdict(self.base.layout),
            "machine": self.base.machine,
            "history": [item.to_dict() for item in self.history],
            "underway": None,
            "session": self.lottery.state_dict(),
        }
        checkpoint.save(files.checkpoint_path(self.out, len(self.history) - 1), state)
        checkpoint.prune(self.out, self.base.recipe.keep_checkpoints)

    def take_up(self) -> list[str]:
        """Go on after the newest round that was kept; what there is to tell.

        Raises:
            CheckpointError: none can be read, or it belongs to another run.
        """
        kept, refused = checkpoint.newest(self.out)
        checkpoint.require_same_recipe(kept.recipe, self.base.recipe, kept.path)
        checkpoint.require_same_samples(kept.samples, len(self.base.train), kept.path)
        try:
            self.lottery.load_state_dict(kept.session)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(
                f"expected the checkpoint of this network, got another one ({error}), try the model it was made with"
            ) from error
        files.sweep(self.out)
        history = record.restore_metrics(self.out, [item.to_dict() for item in kept.history])
        self.history = [Epoch.from_dict(values) for values in history]
        return checkpoint.set_aside(refused, kept.path) + self.base.doubts(kept.machine)


def run(
    recipe: Recipe,
    out: Path | None,
    model: nn.Module | None,
    train_set: Dataset | None,
    test_set: Dataset | None,
    optimizer: Factory | None,
    resume: bool,
    on_epoch: Callable[[Epoch], None] | None,
    progress: Progress,
) -> Result:
    """Train a recipe of method imp, as `fit` does any other; it goes on after the last round that was done.

    Raises: as `fit`.
    """
    base = build(recipe, model, train_set, test_set, optimizer=optimizer)
    rounds = Rounds(base, out, optimizer, on_epoch, progress)
    doubts = []
    if out is not None and resume and files.checkpoints(out):
        doubts = rounds.take_up()
    elif out is not None:
        if resume:
            record.require_begun(out, recipe)
        files.require_space(out / files.CHECKPOINTS, 2 * base.checkpoint_size)
        files.clear(out)
        record.write_run(out, base)
    try:
        progress.start(recipe, len(rounds.history), f"memory format {base.layout.name}: {base.layout.reason}")
        for doubt in doubts:
            progress.warn(doubt)
        rounds.run()
    finally:
        progress.close()
    ticket = dataclasses.replace(base, model=rounds.lottery.model)
    result = Result(recipe, ticket.model, tuple(rounds.history), base.layout, tuple(rounds.table))
    if out is not None:
        record.write_result(out, result, ticket)
    return result
