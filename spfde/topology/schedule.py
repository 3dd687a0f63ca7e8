"""How much of a layer moves at an update: functions of the optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class Constant:
    """`amount`, always."""

    amount: float

    def __call__(self, step: int) -> float:
        """The fraction of the stored weights that moves at an update after `step` optimizer steps."""
        return self.amount


@dataclass(frozen=True)
class Stairs:
    """`amount` at first, half of it from 9/16 of the training on, nothing from 12/16 on.

    MEST's schedule on CIFAR: mutation switches at epochs 90 and 120 of 160. amount: fraction of the stored weights.
    """

    amount: float
    total_steps: int

    def __call__(self, step: int) -> float:
        """The fraction of the stored weights that moves at an update after `step` optimizer steps."""
        if 16 * step >= 12 * self.total_steps:
            return 0.0
        return self.amount / 2 if 16 * step >= 9 * self.total_steps else self.amount


@dataclass(frozen=True)
class Cosine:
    """least + (amount - least) (1 + cos(pi step / end)) / 2, and `least` from step `end` on.

    RigL's annealing (least = 0: nothing moves after `end`). amount, least: fractions of the stored weights.
    """

    amount: float
    end: float
    least: float = 0.0

    def __call__(self, step: int) -> float:
        """The fraction of the stored weights that moves at an update after `step` optimizer steps."""
        if step >= self.end:
            return self.least
        return self.least + (self.amount - self.least) * (1 + cos(pi * step / self.end)) / 2


@dataclass(frozen=True)
class Cubic:
    """1 up to step `begin`, then (1 - (step - begin) / (end - begin))^3, 0 from `end` on.

    Gradual magnitude pruning (Zhu and Gupta, 1710.01878): the share of what is to be pruned that still stands.
    """

    begin: float
    end: float

    def __call__(self, step: int) -> float:
        """The share of the weights to be pruned that an update after `step` optimizer steps leaves."""
        if step >= self.end:
            return 0.0
        return (1 - max(0.0, step - self.begin) / (self.end - self.begin)) ** 3
