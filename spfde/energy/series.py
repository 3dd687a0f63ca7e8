"""What a channel told over a span of time, and the joules, means and changes of it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spfde.energy.rails import Rails
from spfde.energy.sampling import Channel
from spfde.energy.state import CPU, EVENTS, GPU, MEMORY, REASONS, SLOWED

STEADY = 0.95  # of its clock at the beginning of a span that a processor keeps to the end, if nothing slows it
FEWEST = 2  # samples inside a span that tell its energy


@dataclass(frozen=True)
class Series:
    """Values of a channel by the time, in seconds, at which each was read."""

    channel: Channel
    times: Sequence[float]
    values: Sequence[float]

    def inside(self, start: float, end: float) -> np.ndarray:
        """The values of a span."""
        times = np.asarray(self.times)
        return np.asarray(self.values, dtype=float)[(times >= start) & (times <= end)]


@dataclass(frozen=True)
class Draw:
    """Joules of a span, by rail and in total. why: there is no total, "" where there is one."""

    seconds: float
    rails: Mapping[str, float]
    total: float | None
    why: str = ""

    @property
    def watts(self) -> float | None:
        """The mean power in total."""
        return None if self.total is None else self.total / self.seconds


@dataclass(frozen=True)
class State:
    """How a machine fared in a span: (first, last) temperatures in C and clocks in Hz, and what slowed it down.

    memory_left: the least bytes that were available, of the whole machine; None: not told.
    """

    temperatures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    slowed: tuple[str, ...] = ()
    memory_left: float | None = None


def joules(series: Series, start: float, end: float) -> float | None:
    """The energy of a span: of a counter the difference, of power the integral; None with too few samples.

    Power is a line between two samples, and constant before the first and behind the last.
    """
    if len(series.inside(start, end)) < FEWEST:
        return None
    times, values = np.asarray(series.times), np.asarray(series.values, dtype=float)
    if series.channel.unit == "J":
        first, last = np.interp([start, end], times, _unwrapped(values, series.channel.wraps))
        return float(last - first)
    within = (times > start) & (times < end)
    at = np.concatenate([[start], times[within], [end]])
    power = np.interp(at, times, values)
    return float(np.sum((power[1:] + power[:-1]) / 2 * np.diff(at)))


def _unwrapped(values: np.ndarray, wraps: float) -> np.ndarray:
    """A counter that goes on where it started again."""
    turns = np.concatenate([[0], np.cumsum(np.diff(values) < 0)])
    return values + turns * wraps


def draw(found: Iterable[Series], rails: Rails, start: float, end: float) -> Draw:
    """The energy of a span."""
    power = [series for series in found if series.channel in rails.channels]
    by_rail = {series.channel.name: joules(series, start, end) for series in power}
    told = {name: value for name, value in by_rail.items() if value is not None}
    unread = [name for name in rails.total if name not in told]
    if not rails.total or unread:
        why = rails.why_not or f"fewer than {FEWEST} samples of {', '.join(unread)} in {end - start:.2g} s"
        return Draw(end - start, told, None, why)
    return Draw(end - start, told, sum(told[name] for name in rails.total))


def state(found: Iterable[Series], start: float, end: float) -> State:
    """How the machine fared in a span: of clocks the medians of its first and last third, for they jump."""
    temperatures, clocks, slowed, left = {}, {}, [], None
    for series in found:
        channel, values = series.channel, series.inside(start, end)
        if not len(values):
            continue
        third = max(1, len(values) // 3)
        first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
        if channel.unit == "C":
            temperatures[channel.name] = (float(values[0]), float(values[-1]))
        elif channel.unit == "Hz":
            clocks[channel.name] = (first, last)
            if channel.name.startswith((GPU, CPU)) and last < STEADY * first:
                slowed.append(f"{channel.name} fell from {first / 1e6:.0f} to {last / 1e6:.0f} MHz")
        elif channel.name == MEMORY:
            left = float(values.min())
        elif channel.name.startswith(EVENTS) and values[-1] > values[0]:
            slowed.append(f"{channel.name} rose by {values[-1] - values[0]:.0f}")
        elif channel.name == REASONS and any(int(value) & SLOWED for value in values):
            slowed.append("the driver lowered clocks for power or heat")
    return State(temperatures, clocks, tuple(slowed), left)
