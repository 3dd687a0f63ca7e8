"""A device profile as Markdown, for people: what the device is, and what training costs on it, dense beside sparse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from spfde._words import NONE, ratio, size
from spfde.energy.cost import TrainingCost
from spfde.tuning.device_profile import Device, DeviceProfile

SAMPLES = 50_000  # of an epoch, where nobody says otherwise


def stem(device: Device) -> str:
    """The name of a device's files, "nvidia-jetson-agx-orin-developer-kit-16sm-mode-30w"."""
    units = f"{device.units}{'t' if device.kind == 'cpu' else 'sm'}"
    return re.sub(r"[^a-z0-9]+", "-", f"{device.name} {units} {device.mode}".lower()).strip("-")


def markdown(profile: DeviceProfile, samples: int = SAMPLES) -> str:
    """The page. samples: of an epoch."""
    device = profile.device
    lines = [f"# {device.label}", "", f"Measured {profile.date} by `{profile.command}`."]
    facts = {**device.facts, "memory": size(device.memory), **profile.software}
    lines += ["", *_table(("fact", ""), [*facts.items()])]
    if device.absent:
        lines += ["", *(f"- {name}: not available: {why}" for name, why in device.absent.items())]
    idle = _unless(profile.idle_watts, "{:.2f} W")
    lines += ["", "## Energy", "", f"Idle: {idle}. What is summed: {device.facts.get('power', NONE)}.", ""]
    if not profile.training:
        return "\n".join([*lines[:-1], "", "No training was measured.", ""])
    return "\n".join([*lines, *_training(profile.training, profile.idle_watts, samples), ""])


def _training(costs: Sequence[TrainingCost], idle: float | None, samples: int) -> Iterator[str]:
    heads = (
        "network, batch", "weights", "ms / step", "over dense", "J / step", "minus idle", "J over dense",
        f"kJ / epoch of {samples}", "minus idle", "peak memory", "of the machine", "C before, after", "kernels",
    )  # fmt: skip
    yield from _table(heads, [_row(cost, _dense_of(cost, costs), idle, samples) for cost in costs])
    if any(cost.joules() is not None for cost in costs):
        yield ""
        yield "J over dense: gross energy of the dense network's step over this one's; more than 1x is less energy."
    why = dict.fromkeys(cost.why for cost in costs if cost.why)
    yield from (line for reason in why for line in ("", f"Energy: not available: {reason}."))
    for cost in costs:
        slowed = [reason for window in cost.windows for reason in window.state.slowed]
        if slowed:
            kept = "every window was slowed: do not trust this row" if cost.throttled else "those windows do not count"
            yield from ("", f"- {cost.network}, batch {cost.batch}, {_weights(cost)}: {slowed[0]}; {kept}")


def _row(cost: TrainingCost, dense: TrainingCost | None, idle: float | None, samples: int) -> tuple[str, ...]:
    gross, net = cost.joules(), None if idle is None else cost.joules(idle)
    steps = cost.steps_of_epoch(samples)
    before = dense.joules() if dense is not None else None
    return (
        f"{cost.network}, {cost.batch}",
        _weights(cost),
        f"{cost.seconds * 1e3:.3g}",
        ratio(dense.seconds / cost.seconds) if dense is not None else NONE,
        _unless(gross, "{:.3g}"),
        _unless(net, "{:.3g}"),
        ratio(before / gross) if before is not None and gross else NONE,
        _unless(None if gross is None else gross * steps / 1e3, "{:.3g}"),
        _unless(None if net is None else net * steps / 1e3, "{:.3g}"),
        size(cost.peak),
        NONE if cost.shared is None else size(int(cost.shared)),
        _temperatures(cost),
        ", ".join(f"{name} {count}" for name, count in cost.kernels.items()) or "torch",
    )


def _weights(cost: TrainingCost) -> str:
    return f"{cost.pattern} {100 * cost.sparsity:g}%" if cost.sparsity else "dense"


def _dense_of(cost: TrainingCost, costs: Iterable[TrainingCost]) -> TrainingCost | None:
    alike = (c for c in costs if (c.network, c.batch, c.dtype, c.sparsity) == (cost.network, cost.batch, cost.dtype, 0))
    return next(alike, None)


def _temperatures(cost: TrainingCost) -> str:
    """Of the hottest sensor, at the beginning of the first window that counts and at the end of the last."""
    first, last = cost.steady[0].state.temperatures, cost.steady[-1].state.temperatures
    if not first or not last:
        return NONE
    return f"{max(before for before, _ in first.values()):.0f}, {max(after for _, after in last.values()):.0f}"


def _unless(value: float | None, words: str) -> str:
    return "not available" if value is None else words.format(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |"
