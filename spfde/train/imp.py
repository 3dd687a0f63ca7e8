"""Iterative magnitude pruning as a run: the ordinary loop over ever sparser tickets, kept after each round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from spfde.levers import Decision
from spfde.topology import Lottery
from spfde.train import data, run_dir
from spfde.train.build import build, with_levers
from spfde.train.checkpoint import CheckpointError
from spfde.train.device import Layout
from spfde.train.loop import Loop
from spfde.train.session import Inputs


class Rounds:
    """One run of method imp: a `Lottery` whose trainings are epochs of the loop, numbered throughout."""

    def __init__(self, inputs: Inputs, layout: Layout | None = None) -> None:
        recipe = inputs.recipe
        if inputs.levers:
            raise ValueError(f"expected no levers with method='imp', got {len(inputs.levers)}, try method='dense'")
        self.inputs, self.session = inputs, build(inputs, layout)
        self._loop: Loop | None = None
        self.lottery = Lottery(
            self.session.model,
            self._train,
            sparsity=recipe.sparsity,
            rounds=recipe.rounds,
            epochs=recipe.epochs,
            rewind_epoch=recipe.rewind_epoch,
            rewind=recipe.rewind,
            distribution=recipe.distribution,
            pattern=recipe.pattern,
            example_input=self.session.example,
        )

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rounds that are done, in plain values: round, sparsity, and what its training came to."""
        return [{"round": row.number, "sparsity": row.sparsity, **row.outcome} for row in self.lottery.table]

    def run(self, loop: Loop) -> None:
        """Train the rounds that are left, each kept when it is done."""
        self._loop, recipe = loop, self.session.recipe
        while not self.lottery.done:
            done = self.lottery.step()
            accuracy = f"test accuracy {done.outcome['test_accuracy']:.1%}"
            told = f"{done.number} of {recipe.rounds}, {done.sparsity:.1%} sparsity, {accuracy}"
            reason = f"trained to epoch {recipe.epochs}"
            loop.progress.event(len(loop.history) - 1, Decision("round", told, reason))
            loop.checkpointer.write(run_dir.ROUNDS, self.table)
            loop.checkpointer.save(len(loop.history) - 1)

    def _train(self, model: nn.Module, first: int, last: int) -> dict[str, Any]:
        base, loop = self.session, self._loop
        data.seed(base.recipe.seed)  # a round depends on the weights it starts from, not on those before it
        model = base.layout.model(model)
        loop.session = with_levers(self.inputs, model, base.train, base.test, base.layout, base.device, base.example)
        begun = len(loop.history) if self.lottery.table else 0  # round 0 may come in two parts
        loop.epochs(len(loop.history), len(loop.history) + last - first)
        trained = loop.history[begun:]
        return {
            "test_accuracy": trained[-1].test_accuracy,
            "training_seconds": math.fsum(item.training_seconds for item in trained),
            "flops": math.fsum(item.flops for item in trained),
        }

    @property
    def checkpoint_size(self) -> int:
        """At least the bytes of a checkpoint: the ticket, and what it goes back to."""
        return 2 * self.session.checkpoint_size

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the rounds behind, the ticket, and what it goes back to."""
        return self.lottery.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the newest round that was kept.

        Raises:
            CheckpointError: it belongs to another network.
        """
        try:
            self.lottery.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"expected the checkpoint of this network, got another one ({error}), try the model it was made with"
            ) from error

    @property
    def model(self) -> nn.Module:
        """The ticket."""
        return self.lottery.model
