"""How long an arm's phases take: its whole schedule on a few batches an epoch, in turn with the dense training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from proof_arms import DENSE, Setting, fresh, halves, part, recipe

from spfde.data import DataSets
from spfde.train.checkpointer import Checkpointer, Start
from spfde.train.data import isolated
from spfde.train.fit import Training
from spfde.train.loop import Loop
from spfde.train.progress import NullProgress
from spfde.train.session import Inputs
from spfde.train.stops import Interrupts

JUDGED = 8  # samples of the evaluation, which is no part of training


@dataclass(frozen=True)
class Phase:
    """One epoch of an arm, timed: seconds of a step, and `once`, those that its training took beyond its steps.

    What comes once are the levers at a boundary, and what a first step chooses or compiles. dense_step and dense_once:
    those of the dense epoch beside it.
    """

    epoch: int
    frozen: int
    sparsity: float
    step: float
    once: float
    dense_step: float
    dense_once: float

    @property
    def state(self) -> tuple[int, float]:
        """What makes steps of two epochs alike."""
        return self.frozen, round(self.sparsity, 3)


class Watch(NullProgress):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, *about: Any) -> None:
        """Take note."""
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From one step's end to the next one's, since the last call."""
        times, self.times = self.times, []
        return np.diff(times).tolist()


class Lane:
    """One arm's training, an epoch at a time, on as few samples as give it `steps` steps in an epoch."""

    def __init__(self, name: str, setting: Setting, steps: int, seed: int) -> None:
        sets, wanted = halves(setting), recipe(name, setting, seed)
        count = min(len(sets.train), math.ceil(steps * setting.batch_size / (1 - wanted.sieve)))
        few = DataSets(
            sets.name,
            *(part(half, np.arange(n)) for half, n in ((sets.train, count), (sets.test, JUDGED))),
            sets.num_classes,
            sets.shape,
        )
        training = Training(Inputs(wanted, fresh(wanted, few), few.train, few.test))
        self.watch = Watch()
        self.loop = Loop(Start(training, []), Checkpointer(None, training, [], Interrupts()), self.watch)

    def epoch(self, number: int) -> tuple[float, float]:
        """Train an epoch; the median seconds of its steps but the first, and those of the whole beyond its steps."""
        self.loop.epochs(number, number + 1)
        own = self.watch.seconds()
        step = median(own)
        return step, self.loop.history[-1].training_seconds - step * (len(own) + 1)

    def close(self) -> None:
        """Leave the model."""
        self.loop.session.close()


def phases(name: str, setting: Setting, steps: int, seed: int = 0) -> list[Phase]:
    """Time every epoch of an arm's schedule, each right after one of the dense training."""
    as_long = replace(setting, epochs=recipe(name, setting, seed).epochs)  # whatever the arm's share of the epochs
    with isolated():
        lanes = [Lane(DENSE, as_long, steps, seed), Lane(name, setting, steps, seed)]
        timed = []
        for number in range(lanes[1].loop.session.recipe.epochs):
            dense, own = (lane.epoch(number) for lane in lanes)
            done = lanes[1].loop.history[-1]
            timed.append(Phase(number, len(done.frozen), done.sparsity, *own, *dense))
        for lane in lanes:
            lane.close()
    return timed


def seconds(rounds: Sequence[Sequence[Phase]], steps: Sequence[int], dense_step: float) -> list[float]:
    """Training seconds of each epoch of a run, of `steps` each, every step at its phase's time.

    A phase's time is the median, over its epochs and rounds, of its ratio to the dense steps beside it, times
    `dense_step`: what slows the machine down slows both.
    """
    ratios: dict[tuple[int, float], list[float]] = {}
    for phase in (phase for one in rounds for phase in one):
        ratios.setdefault(phase.state, []).append(phase.step / phase.dense_step)
    found = []
    for epoch, count in enumerate(steps):
        here = [one[epoch] for one in rounds]
        found.append(median(ratios[here[0].state]) * dense_step * count + median(phase.once for phase in here))
    return found
