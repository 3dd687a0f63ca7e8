"""SpFDE's four schemes: schedules that freeze front to back and save a given share of the training's cost.

Each is called as `single_shot` is. The arithmetic knows costs and no unit: FLOPs or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from spfde.freezing.schedule import Change, FreezeSchedule, exact_first_epoch, saved

PERIODS = (4, 2)  # of the front blocks and of the middle ones: epochs of which one updates them
ROUNDING = 1e-12  # a target met exactly must not fail by rounding


class Unreachable(ValueError):
    """No schedule saves so much. most: the share that one does save, 0 where none saves anything."""

    def __init__(self, text: str, most: float) -> None:
        super().__init__(text)
        self.most = most


def to_freeze(blocks: int, fraction: float) -> int:
    """How many of the blocks `fraction` means: rounded to a whole number, at least one."""
    return max(1, math.floor(fraction * blocks + 0.5))


def single_shot(
    names: Sequence[str],
    backward: Sequence[float],
    total: float,
    *,
    epochs: int,
    interval: int,
    flops_reduction: float,
    fraction: float,
    unit: str = "FLOPs",
) -> FreezeSchedule:
    """Front to back, one block per interval, each frozen once, as late as the target allows.

    The first epoch is the latest multiple of `interval` at which what the blocks save times the epochs they stay
    frozen reaches `flops_reduction` of the training's cost.

    Args:
        names: blocks, front to back.
        backward: what freezing each block saves per sample: its backward FLOPs, or seconds.
        total: what the whole model costs per sample, forward and backward.
        epochs: length of the training.
        interval: epochs between two freezes.
        flops_reduction: share of the training's cost to save.
        fraction: share of the blocks to freeze, rounded to a whole number of blocks, at least one.
        unit: of the costs, for the reason.

    Raises:
        ValueError: the target cannot be reached.

    Source: SpFDE (NeurIPS 2022), "Layer Freezing Algorithm", single-shot scheme.
    """
    count = to_freeze(len(names), fraction)
    credit = backward[:count]
    whole = total * epochs
    target = flops_reduction * whole * (1 - ROUNDING)
    boundaries = range(interval, epochs, interval)
    times = {"epochs": epochs, "interval": interval}
    reachable = saved(credit, interval, **times) / whole if boundaries else 0.0
    first = next((e for e in reversed(boundaries) if saved(credit, e, **times) >= target), None)
    if first is None:
        raise _unreachable(
            flops_reduction, reachable, f"{count} of {len(names)} blocks over {epochs} epochs with interval {interval}"
        )
    saving = saved(credit, first, **times) / whole
    exact = exact_first_epoch(credit, flops_reduction * whole, **times)
    starts = [(first + i * interval, name) for i, name in enumerate(names[:count]) if first + i * interval < epochs]
    reason = (
        f"freezing {len(starts)} of {len(names)} blocks from epoch {first}, one every {interval} epochs, "
        f"saves {saving:.1%} of all training {unit} "
        f"(target {flops_reduction:.1%}, met exactly at epoch {exact:.1f})"
    )
    return FreezeSchedule(tuple(Change(epoch, name) for epoch, name in starts), saving, reason)


def single_shot_resume(
    names: Sequence[str],
    backward: Sequence[float],
    total: float,
    *,
    epochs: int,
    interval: int,
    flops_reduction: float,
    fraction: float,
    unit: str = "FLOPs",
    thaw_epochs: int | None = None,
) -> FreezeSchedule:
    """As single_shot, each block `thaw_epochs` earlier, and all of them active again for the last `thaw_epochs`.

    Args:
        thaw_epochs: a multiple of `interval`; None: a tenth of the training, or what there is room for.

    Raises:
        ValueError: the target cannot be reached, or the first block would freeze before the first interval is over.

    Source: SpFDE (NeurIPS 2022), Appendix B, "single-shot & resume". Each block stays frozen as long as in single-shot,
    so the saving is the same.
    """
    options = {"epochs": epochs, "interval": interval, "flops_reduction": flops_reduction, "fraction": fraction}
    whole = single_shot(names, backward, total, **options, unit=unit)
    first = whole.freezes[0][0]
    room = first - interval
    if room < interval:
        raise ValueError(
            f"expected a target that leaves epochs to thaw, got flops_reduction {flops_reduction}, for which the first "
            f"block freezes at epoch {first}; try less, a larger fraction or scheme='single-shot'"
        )
    thaw = min(room, interval * max(1, epochs // 10 // interval)) if thaw_epochs is None else thaw_epochs
    if thaw % interval or not interval <= thaw <= room:
        raise ValueError(
            f"expected thaw_epochs to be a multiple of the interval in [{interval}, {room}], as single-shot starts at "
            f"epoch {first}, got {thaw}; try {room}"
        )
    changes = [Change(epoch - thaw, name) for epoch, name in whole.freezes]
    changes += [Change(epochs - thaw, name, frozen=False) for _, name in whole.freezes]
    reason = f"{whole.reason}; each {thaw} epochs earlier, for {thaw} epochs at the end in which all blocks train"
    return FreezeSchedule(tuple(changes), whole.saving, reason)


def periodic(
    names: Sequence[str],
    backward: Sequence[float],
    total: float,
    *,
    epochs: int,
    interval: int,
    flops_reduction: float,
    fraction: float,
    unit: str = "FLOPs",
) -> FreezeSchedule:
    """The front blocks are updated in one epoch of 4, those in the middle in one of 2, the others always.

    As the periods are powers of two, a block is frozen only while all in front of it are. A period ends with the epoch
    that updates: topologies move masks at the end of an interval, and the last epoch is one for all blocks where 4
    divides `epochs`. Before the first period every block trains for an epoch. How many blocks are front and middle is
    chosen to save least above the target, the fewest in front of such. The last block never freezes.

    Args:
        interval: not looked at.
        fraction: at most this share of the blocks freezes at times.

    Raises:
        ValueError: the target cannot be reached, or there is one block only.

    Source: SpFDE (NeurIPS 2022), Appendix B, "periodic".
    """
    options = {"epochs": epochs, "interval": interval, "flops_reduction": flops_reduction, "fraction": fraction}
    return delayed_periodic(names, backward, total, **options, unit=unit, delay=1)


def delayed_periodic(
    names: Sequence[str],
    backward: Sequence[float],
    total: float,
    *,
    epochs: int,
    interval: int,
    flops_reduction: float,
    fraction: float,
    unit: str = "FLOPs",
    delay: int | None = None,
) -> FreezeSchedule:
    """All blocks train for `delay` epochs; then as in `periodic`, with more blocks in front and middle.

    Args:
        delay: in [1, epochs); None: a quarter of the training, in whole intervals.

    Raises:
        ValueError: the target cannot be reached, `delay` is out of range, or there is one block only.

    Source: SpFDE (NeurIPS 2022), Appendix B, "delayed periodic".
    """
    if len(names) < 2:
        raise ValueError(f"expected two blocks or more, as the last never freezes, got {list(names)}; try single-shot")
    delay = interval * max(1, epochs // 4 // interval) if delay is None else delay
    if not 1 <= delay < epochs:
        raise ValueError(f"expected delay in [1, {epochs - 1}], got {delay}; try {max(1, epochs // 4)}")
    count = min(to_freeze(len(names), fraction), len(names) - 1)
    away = [sum(not _updates(period, epoch) for epoch in range(delay, epochs)) for period in PERIODS]
    upto = [0.0, *accumulate(backward[:count])]
    whole = total * epochs

    def share(front: int, end: int) -> float:
        return (upto[front] * away[0] + (upto[end] - upto[front]) * away[1]) / whole

    sizes = [(front, end) for end in range(1, count + 1) for front in range(end + 1)]
    enough = [size for size in sizes if share(*size) >= flops_reduction * (1 - ROUNDING)]
    if not enough:
        raise _unreachable(
            flops_reduction,
            max(share(*size) for size in sizes),
            f"{count} of {len(names)} blocks by turns from epoch {delay} of {epochs}",
        )
    front, end = min(enough, key=lambda size: (share(*size), size[0]))
    saving = share(front, end)
    reason = (
        f"from epoch {delay} updating the first {front} of {len(names)} blocks in one epoch of {PERIODS[0]} and the "
        f"next {end - front} in one of {PERIODS[1]} saves {saving:.1%} of all training {unit} "
        f"(target {flops_reduction:.1%})"
    )
    groups = (names[:front], names[front:end])
    return FreezeSchedule(tuple(_turns(groups, delay, epochs)), saving, reason)


def _updates(period: int, epoch: int) -> bool:
    """Whether an epoch is the one of its period that updates."""
    return (epoch + 1) % period == 0


def _turns(groups: Sequence[Sequence[str]], delay: int, epochs: int) -> list[Change]:
    """The changes of groups of blocks, one for each period, that take turns from epoch `delay` on."""
    frozen = [[False] * len(PERIODS)] + [
        [not _updates(period, epoch) for period in PERIODS] for epoch in range(delay, epochs)
    ]
    return [
        Change(epoch, name, now)
        for epoch, (before, after) in enumerate(pairwise(frozen), start=delay)
        for group, was, now in zip(groups, before, after, strict=True)
        if was != now
        for name in group
    ]


def _unreachable(wanted: float, reachable: float, what: str) -> Unreachable:
    most = math.floor(reachable * 1e4) / 1e4
    return Unreachable(
        f"expected flops_reduction <= {most:.4f}, the most that freezing {what} saves, got {wanted}; try that, a "
        "larger fraction or more epochs",
        max(0.0, most),
    )


# Makers of schedules by the name of their scheme, called as `single_shot` is.
SCHEMES: dict[str, Callable[..., FreezeSchedule]] = {
    "single-shot": single_shot,
    "single-shot-resume": single_shot_resume,
    "periodic": periodic,
    "delayed-periodic": delayed_periodic,
}
# The option that a scheme has of its own.
OWN_OPTIONS = {"single-shot-resume": "thaw_epochs", "delayed-periodic": "delay"}
