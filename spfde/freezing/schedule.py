"""When to freeze and unfreeze which block so that training costs a given share of FLOPs less: arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """What happens to a block before an epoch begins: it freezes, or (frozen False) is given back to the training."""

    epoch: int
    block: str
    frozen: bool = True


@dataclass(frozen=True)
class FreezeSchedule:
    """When which block is frozen.

    Attributes:
        changes: in the order in which they happen.
        saving: share of all training FLOPs that the schedule saves.
        reason: why it starts when it starts.
    """

    changes: tuple[Change, ...]
    saving: float
    reason: str

    @property
    def freezes(self) -> tuple[tuple[int, str], ...]:
        """(epoch, block name) of every freeze, in order."""
        return tuple((change.epoch, change.block) for change in self.changes if change.frozen)

    def frozen(self, epoch: int) -> tuple[str, ...]:
        """Blocks that are frozen during an epoch, in freezing order."""
        names: dict[str, None] = {}
        for change in self.changes:
            if change.epoch <= epoch:
                names.pop(change.block, None)
                if change.frozen:
                    names[change.block] = None
        return tuple(names)

    def __str__(self) -> str:
        width = len(str(self.changes[-1].epoch))
        lines = [f"epoch {c.epoch:>{width}}  {'freeze' if c.frozen else 'unfreeze'} {c.block}" for c in self.changes]
        return "\n".join([*lines, self.reason])


def saved(backward: Sequence[float], first_epoch: float, *, epochs: int, interval: int) -> float:
    """sum_i backward[i] * epochs block i stays frozen, block i being frozen at first_epoch + i * interval."""
    return sum(b * max(0, epochs - first_epoch - i * interval) for i, b in enumerate(backward))


def exact_first_epoch(backward: Sequence[float], target: float, *, epochs: int, interval: int) -> float:
    """The real-valued first epoch at which `saved` equals `target`; may be negative (unreachable).

    T_frz = T - (target + dT * sum_i i * b_i) / sum_i b_i over the blocks that get frozen before the end.
    """
    for count in range(len(backward), 0, -1):
        rate, moment = sum(backward[:count]), sum(i * b for i, b in enumerate(backward[:count]))
        first = epochs - (target + interval * moment) / rate if rate else -math.inf
        if first + (count - 1) * interval <= epochs:
            return first
    return -math.inf


def single_shot(
    names: Sequence[str],
    backward: Sequence[float],
    total: float,
    *,
    epochs: int,
    interval: int,
    flops_reduction: float,
    fraction: float,
) -> FreezeSchedule:
    """Front to back, one block per interval, each frozen once, as late as the FLOPs target allows.

    The first epoch is the latest multiple of `interval` at which the blocks' backward FLOPs times the epochs
    they stay frozen reach `flops_reduction` of all training FLOPs.

    Args:
        names: blocks, front to back.
        backward: backward FLOPs per sample of each block.
        total: forward + backward FLOPs per sample of the whole model.
        epochs: length of the training.
        interval: epochs between two freezes.
        flops_reduction: share of training FLOPs to save.
        fraction: share of the blocks to freeze, rounded to a whole number of blocks, at least one.

    Raises:
        ValueError: the target cannot be reached.

    Source: SpFDE (NeurIPS 2022), "Layer Freezing Algorithm", single-shot scheme.
    """
    count = max(1, math.floor(fraction * len(names) + 0.5))
    credit = backward[:count]
    whole = total * epochs
    target = flops_reduction * whole * (1 - 1e-12)  # a target met exactly must not fail by rounding
    boundaries = range(interval, epochs, interval)
    times = {"epochs": epochs, "interval": interval}
    reachable = saved(credit, interval, **times) / whole if boundaries else 0.0
    first = next((e for e in reversed(boundaries) if saved(credit, e, **times) >= target), None)
    if first is None:
        raise ValueError(
            f"expected flops_reduction <= {math.floor(reachable * 1e4) / 1e4:.4f}, the most that freezing "
            f"{count} of {len(names)} blocks over {epochs} epochs with interval {interval} saves, got "
            f"{flops_reduction}; try that, a larger fraction or more epochs"
        )
    saving = saved(credit, first, **times) / whole
    exact = exact_first_epoch(credit, flops_reduction * whole, **times)
    starts = [(first + i * interval, name) for i, name in enumerate(names[:count]) if first + i * interval < epochs]
    reason = (
        f"freezing {len(starts)} of {len(names)} blocks from epoch {first}, one every {interval} epochs, "
        f"saves {saving:.1%} of all training FLOPs "
        f"(target {flops_reduction:.1%}, met exactly at epoch {exact:.1f})"
    )
    return FreezeSchedule(tuple(Change(epoch, name) for epoch, name in starts), saving, reason)


# Makers of schedules by the name of their scheme, called as `single_shot` is.
SCHEMES: dict[str, Callable[..., FreezeSchedule]] = {"single-shot": single_shot}
