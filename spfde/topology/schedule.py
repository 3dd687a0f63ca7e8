"""When masks move, and how much of a layer moves then: functions of the optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi
from numbers import Integral
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps that updates follow. Steps count from 1, and only those that moved the weights.

    planned: steps of the whole training. every: steps between updates. every_epochs: epochs between them instead; an
    update then follows the last step of an epoch, and what epochs really hold is learned from `begin_epoch`. skipped:
    steps of `planned` that did not move the weights. next_update, intervals: with every_epochs, the next such step if
    it lies in this epoch, and how many intervals were over when the epoch began.
    """

    planned: int
    every: int
    every_epochs: int | None = None
    skipped: int = 0
    next_update: int | None = None
    intervals: int = 0

    def __post_init__(self) -> None:
        for name, value in (("total_steps", self.planned), ("every", self.every), ("every_epochs", self.every_epochs)):
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
                raise TypeError(f"expected {name} to be an integer, got {value!r}, try int({name})")
        if self.planned < 1:
            raise ValueError(f"expected total_steps >= 1, got {self.planned}")
        if self.every < 1:
            raise ValueError(f"expected every >= 1 (optimizer steps between updates), got {self.every}")
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ValueError(f"expected every_epochs >= 1 (epochs between updates), got {self.every_epochs}")

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, as far as is known."""
        return self.planned - self.skipped

    def due(self, step: int) -> bool:
        """Whether an update follows this step."""
        follows = step % self.every == 0 if self.every_epochs is None else step == self.next_update
        return follows and step < self.total_steps

    def interval(self, step: int) -> int:
        """How many intervals between updates are over after this step."""
        if self.every_epochs is None:
            return step // self.every
        return self.intervals + (self.next_update is not None and step >= self.next_update)

    def begin_epoch(self, done: int, epoch: int, steps: int, epochs: int) -> Schedule:
        """The schedule from an epoch of `steps` steps on, with `done` steps before it; later epochs are as long."""
        if self.every_epochs is None:
            return replace(self, planned=done + steps * (epochs - epoch), skipped=0)
        last = (epoch + 1) % self.every_epochs == 0
        return replace(
            self,
            planned=done + steps * (epochs - epoch),
            skipped=0,
            next_update=done + steps if last else None,
            intervals=epoch // self.every_epochs,
        )

    def skip(self) -> Schedule:
        """The schedule after a step that did not move the weights: what is left of the training is one step shorter."""
        earlier = None if self.next_update is None else self.next_update - 1
        return replace(self, skipped=self.skipped + 1, next_update=earlier)

    def state_dict(self) -> dict[str, Any]:
        """What the training so far changed."""
        names = ("planned", "skipped", "next_update", "intervals")
        return {name: getattr(self, name) for name in names}


def cosine(step: int, amount: float, end: float, least: float = 0.0) -> float:
    """least + (amount - least) (1 + cos(pi step / end)) / 2, and `least` from step `end` on.

    RigL's annealing (least = 0: nothing moves after `end`). amount, least: shares of the stored weights.
    """
    if step >= end:
        return least
    return least + (amount - least) * (1 + cos(pi * step / end)) / 2


def stairs(step: int, amount: float, total_steps: int) -> float:
    """`amount` at first, half of it from 9/16 of the training on, 0 from 12/16 on.

    MEST's schedule on CIFAR: mutation switches at epochs 90 and 120 of 160. amount: share of the stored weights.
    """
    if 16 * step >= 12 * total_steps:
        return 0.0
    return amount / 2 if 16 * step >= 9 * total_steps else amount


def cubic(step: int, begin: float, end: float) -> float:
    """1 up to step `begin`, then (1 - (step - begin) / (end - begin))^3, 0 from step `end` on.

    Gradual magnitude pruning (Zhu and Gupta, 1710.01878): the share of what is to be pruned that is still there.
    """
    if step >= end:
        return 0.0
    return (1 - max(0.0, step - begin) / (end - begin)) ** 3
