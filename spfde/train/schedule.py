"""Learning rate and step counts as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """ceil(samples / batch_size), a last batch of one sample joining the one before it."""
    steps = math.ceil(samples / batch_size)
    return steps - 1 if steps > 1 and samples % batch_size == 1 else steps


def step_rate(progress: float, peak: float, warmup: float, milestones: Sequence[float], gamma: float) -> float:
    """Peak * min(1, progress / warmup) * gamma ** (number of milestones <= progress).

    Args:
        progress: fraction of the whole planned training that is behind, in [0, 1].
        peak: learning rate after the warm-up.
        warmup: fraction of the training with a linear warm-up.
        milestones: fractions of the training at which the rate drops.
        gamma: factor on the rate at each.
    """
    return peak * _ramp(progress, warmup) * gamma ** sum(milestone <= progress for milestone in milestones)


def learning_rate(progress: float, peak: float, warmup: float, horizon: float = 1.0) -> float:
    """Peak * min(1, progress / warmup) * (1 + cos(pi * progress / horizon)) / 2, and 0 from the horizon on.

    Args:
        progress: fraction of the whole planned training that is behind, in [0, 1]. Counting in fractions
            keeps the schedule whole when sieving shortens the epochs.
        peak: learning rate after the warm-up.
        warmup: fraction of the training with a linear warm-up.
        horizon: fraction of the training at which the rate reaches 0: 1, or where a block freezes. Each block
            then anneals over its own active epochs (SpFDE, NeurIPS 2022, "Layer Freezing Algorithm").
    """
    if progress >= horizon:
        return 0.0
    return peak * _ramp(progress, warmup) * (1 + math.cos(math.pi * progress / horizon)) / 2


def _ramp(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0 else 1.0
