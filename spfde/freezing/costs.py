"""What a training step costs with the front of a model frozen: in FLOPs, counted, or in seconds, measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from spfde.freezing.block import FreezeBlock
from spfde.freezing.seconds import non_increasing


@dataclass(frozen=True)
class Costs:
    """By what a plan is made.

    Attributes:
        unit: "FLOPs" or "seconds".
        total: of a step with nothing frozen, by which a target is meant.
        credits: what freezing each block, front to back, is credited with.
        steps: of a step with the first 0, 1, ... blocks frozen, as it is.
    """

    unit: str
    total: float
    credits: tuple[float, ...]
    steps: tuple[float, ...]


def in_flops(blocks: Sequence[FreezeBlock]) -> Costs:
    """Those per sample at the present densities.

    Credited is the backward pass of the blocks themselves, as in SpFDE's arithmetic. A step saves a little more: the
    stem's, and the input gradient of what reads the last frozen block.
    """
    work = [*(w for block in blocks for w in block.work), *(layer.work for layer in blocks[0].rest)]
    total = sum(w.forward + w.backward for w in work)
    return Costs("FLOPs", total, tuple(block.credit for block in blocks), training_flops(blocks))


def training_flops(blocks: Sequence[FreezeBlock]) -> tuple[int, ...]:
    """FLOPs of one sample in a training step with the first 0, 1, ... of all a model's blocks frozen.

    At the present densities, of the whole model, stem and head included, counting the gradients that are computed.
    """
    layers = [*(layer for block in blocks for layer in block.layers), *blocks[0].rest]
    return tuple(sum(layer.training(front) for layer in layers) for front in range(len(blocks) + 1))


def in_seconds(seconds: Sequence[float], blocks: int, count: int) -> Costs:
    """Those that were measured with the first 0, 1, ... of some blocks frozen, of which `count` are to freeze.

    Raises:
        ValueError: one is not positive, or there are too few or too many.
    """
    positive = all(isinstance(value, int | float) and 0 < value < math.inf for value in seconds)
    if not positive or not count < len(seconds) <= blocks + 1:
        raise ValueError(
            f"expected the positive seconds of a step with the first 0 to {count} blocks frozen, got {list(seconds)}; "
            "try step_seconds with the same blocks and fraction"
        )
    steps = non_increasing(seconds)
    credits = [before - after for before, after in pairwise(steps)]
    return Costs("seconds", steps[0], (*credits, *[0.0] * (blocks - len(credits))), steps)
