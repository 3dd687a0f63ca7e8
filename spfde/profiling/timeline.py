"""A clock whose every instant belongs to exactly one bucket, so that the buckets sum to the whole."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from spfde.kernels.clock import Clock

PYTHON = "Python"


class Bucket(NamedTuple):
    """What an instant is spent on. phase: of the step. layer: a module's name. op: a class or function. kind: see kinds."""

    phase: str
    layer: str
    op: str
    kind: str


class Timeline:
    """Seconds by bucket. The innermost bucket counts; while it is stopped, nothing does.

    kernels: the time of spfde's own kernels. Where they ran, only their part counts as the bucket's kind, and what
    surrounds them (checks, dispatch, allocation) as Python.
    """

    def __init__(self, kernels: Clock, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[Bucket, float] = defaultdict(float)
        self._kernels, self._now = kernels, now
        self._stack: list[Bucket] = []
        self._since = self._kernels_since = 0.0

    @property
    def innermost(self) -> Bucket:
        """The bucket that counts."""
        return self._stack[-1]

    def stop(self) -> None:
        """Gives the time since `start` to the innermost bucket."""
        passed = self._now() - self._since
        inside = self._kernels.seconds - self._kernels_since
        if not self._stack:
            return
        bucket = self._stack[-1]
        if inside:
            self.seconds[bucket] += inside
            self.seconds[bucket._replace(kind=PYTHON)] += passed - inside
        else:
            self.seconds[bucket] += passed

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
