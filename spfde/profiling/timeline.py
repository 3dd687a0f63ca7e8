"""A clock whose every instant belongs to exactly one bucket, so that the buckets sum to the whole."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from spfde.kernels.clock import Clock

FORWARD, BACKWARD = "forward", "backward"  # the phases that have layers
PYTHON = "Python"


class Bucket(NamedTuple):
    """What an instant is spent on.

    phase: of the step. layer: the name of a module. op: a class or function. kind: one of `kinds.KINDS`.
    """

    phase: str
    layer: str
    op: str
    kind: str


class Timeline:
    """Seconds by bucket. The innermost bucket counts; while the line is stopped, nothing does.

    kernels: the time of spfde's own kernels. Where they ran, only their part counts as the bucket's kind, and what
    surrounds them (checks, dispatch, allocation) as Python.
    stops: how often each bucket was interrupted or left: every time costs a little that is not the step's.
    """

    def __init__(self, kernels: Clock, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[Bucket, float] = defaultdict(float)
        self.stops: Counter[Bucket] = Counter()
        self._kernels, self._now = kernels, now
        self._stack: list[Bucket] = []
        self._since = self._kernels_since = 0.0

    @property
    def innermost(self) -> Bucket | None:
        """The bucket that counts, if any."""
        return self._stack[-1] if self._stack else None

    def stop(self) -> None:
        """Gives the time since `start` to the innermost bucket."""
        passed = self._now() - self._since
        inside = self._kernels.seconds - self._kernels_since
        if not self._stack:
            return
        bucket = self._stack[-1]
        if inside:
            self.seconds[bucket] += inside
            passed, bucket = passed - inside, bucket._replace(kind=PYTHON)
        self.seconds[bucket] += passed
        self.stops[bucket] += 1

    def start(self) -> None:
        """Counts from here."""
        self._kernels_since = self._kernels.seconds
        self._since = self._now()

    def push(self, bucket: Bucket) -> None:
        """Makes a bucket the innermost one, while stopped."""
        self._stack.append(bucket)

    def pop(self) -> None:
        """Goes back to the bucket before, while stopped."""
        self._stack.pop()

    @contextmanager
    def within(self, bucket: Bucket) -> Iterator[None]:
        """Counts a block of code as `bucket`, save what it gives to others."""
        self.stop()
        self.push(bucket)
        self.start()
        try:
            yield
        finally:
            self.stop()
            self.pop()
            self.start()


def without_overhead(
    seconds: Mapping[Bucket, float], stops: Mapping[Bucket, float], whole: float
) -> dict[Bucket, float]:
    """The buckets without the time that counting took, so that they come to `whole`, what the step takes uncounted.

    What they exceed it by is taken off evenly per stop, from no bucket more than it has. Short of it they stay.
    """
    left, found = sum(seconds.values()) - whole, dict(seconds)
    while left > 1e-12 and (weights := {b: n for b, n in stops.items() if n and found[b] > 0}):
        each = left / sum(weights.values())
        for bucket, count in weights.items():
            taken = min(each * count, found[bucket])
            found[bucket] -= taken
            left -= taken
    return found
