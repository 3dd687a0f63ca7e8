"""How much of a layer moves at an update: functions of the optimizer step."""

from __future__ import annotations

from dataclasses import dataclass


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
