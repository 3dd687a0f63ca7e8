"""What a freezer refuses: arguments out of range, blocks of another model, plans that leave nothing to train."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from spfde.freezing.block import FreezeBlock

LEAST = 0.05  # a plan that leaves less of a model to train is taken for a mistake


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """An integer in [low, high].

    Raises:
        ValueError: it is anything else.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        span = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"expected {name} to be an integer {span}, got {value!r}; try {low}")


def check_share(name: str, value: object, span: str, usual: float) -> None:
    """A number in `span`, which is (0, 1), (0, 1] or [0, 1).

    Raises:
        ValueError: it is anything else.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    ends = (value == 0 and span.startswith("[")) or (value == 1 and span.endswith("]"))
    if not real or not (0 < value < 1 or ends):
        raise ValueError(f"expected {name} in {span}, got {value!r}; try {usual:.2g}")


def check_above(name: str, value: object, low: float, usual: float) -> None:
    """A finite number greater than `low`.

    Raises:
        ValueError: it is anything else.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low < value < math.inf:
        raise ValueError(f"expected {name} to be a number > {low:g}, got {value!r}; try {usual:g}")


def check_blocks(blocks: Sequence[FreezeBlock], model: nn.Module) -> None:
    """The blocks of `model` as it is now.

    Raises:
        TypeError: they are no FreezeBlocks, or `model` is no module.
        ValueError: there are none, two have one name, or a part of one is not in the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module as model, got {type(model).__name__}; try the network in training")
    if not all(isinstance(block, FreezeBlock) for block in blocks):
        kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
        raise TypeError(f"expected a list of FreezeBlock, got {kinds}; try spfde.freezing.blocks(model, example_input)")
    names = [block.name for block in blocks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected blocks with different names, got {names}; try blocks(model, example_input)")
    inside = {id(m) for m in model.modules()}
    for block in blocks:
        for name, module in (*block.modules, *((layer.work.name, layer.module) for layer in block.layers)):
            if id(module) not in inside:
                raise ValueError(
                    f"expected blocks of this model as it is now, got {name!r} of block {block.name!r}, "
                    "which is not in it; try calling blocks(model, example_input) again, after sparsify"
                )


def trainable_share(model: nn.Module, frozen: Sequence[FreezeBlock]) -> float:
    """The share of the parameters that train now, by number of stored weights, that `frozen` leaves to train."""
    gone = {p for block in frozen for p in block.trainable}
    counts = {p: p.numel() for p in model.parameters() if p.requires_grad}
    return sum(n for p, n in counts.items() if p not in gone) / max(1, sum(counts.values()))
