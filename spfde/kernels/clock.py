"""Seconds spent inside spfde's kernels, for reports that attribute a run's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Clock:
    """Accumulated kernel time, in seconds."""

    seconds: float = 0.0


running: list[Clock] = []  # empty: nothing is timed
_inside: list[bool] = []  # not empty while a kernel is being timed: one that it calls is part of it


@contextmanager
def measure() -> Iterator[Clock]:
    """Counts the kernel time of everything run inside the block; may be nested. Exact on CPU only."""
    clock = Clock()
    running.append(clock)
    try:
        yield clock
    finally:
        running.remove(clock)


def timed(kernel: Callable[P, R]) -> Callable[P, R]:
    """Makes a kernel count towards the clocks that run while it does."""

    @wraps(kernel)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not running or _inside:
            return kernel(*args, **kwargs)
        _inside.append(True)
        start = time.perf_counter()
        try:
            return kernel(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            _inside.clear()
            for clock in running:
                clock.seconds += seconds

    return run
