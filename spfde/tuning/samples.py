"""What repeated timings say: a median with its spread, a ratio with its interval, and when that is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles

CONFIDENCE = 0.95  # of an interval
RESOLUTION = 0.05  # two figures this far apart are to be told apart


@dataclass(frozen=True)
class Timing:
    """Seconds: median, minimum and quartiles of the rounds."""

    median: float
    minimum: float
    q1: float
    q3: float

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        return (self.q3 - self.q1) / 2 / self.median


@dataclass(frozen=True)
class Ratio:
    """The median of a ratio over the rounds, and the interval that holds it with 95% confidence."""

    value: float
    low: float
    high: float

    @property
    def doubt(self) -> float:
        """Half the width of the interval, over the value: what cannot be told apart."""
        return (self.high - self.low) / 2 / self.value

    def differs(self, other: Ratio) -> bool:
        """Whether two ratios are apart beyond doubt: their intervals do not meet."""
        return self.low > other.high or other.low > self.high


def summarise(seconds: Sequence[float]) -> Timing:
    """Median, minimum and quartiles."""
    if len(seconds) == 1:
        return Timing(*(seconds[0],) * 4)
    q1, middle, q3 = quantiles(seconds, n=4, method="inclusive")
    return Timing(middle, min(seconds), q1, q3)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The ratio of two calls that took turns: of each round, so that a slow moment of the machine counts in both.

    The interval is between order statistics (sign test): it assumes nothing of how times are distributed. Fewer than
    six rounds suffice for no such interval; theirs is between the extremes.
    """
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    outside = _outside(len(ratios))
    return Ratio(median(ratios), ratios[outside], ratios[-1 - outside])


def _outside(rounds: int) -> int:
    """How many of the sorted values lie below the interval of the median."""
    tail, count = 0.0, 0
    while (tail := tail + comb(rounds, count) / 2**rounds) <= (1 - CONFIDENCE) / 2:
        count += 1
    return max(0, count - 1)


def noise(ratios: Iterable[Ratio], resolution: float = RESOLUTION) -> str | None:
    """What to say of a machine on which most of the ratios are not known to `resolution`, None if they are."""
    doubts = [each.doubt for each in ratios]
    if not doubts or median(doubts) <= resolution:
        return None
    return (
        f"this machine is too noisy to tell {resolution:.0%} apart: half of the ratios are uncertain by more than "
        f"{median(doubts):.0%}; close other programs, or take more repeats"
    )
