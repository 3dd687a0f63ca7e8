"""Where an epoch's seconds went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

CATEGORIES = ("kernels", "step", "data", "levers", "evaluation", "checkpoint", "other")


class Stopwatch:
    """Splits the time since its start into `CATEGORIES`, in seconds, on top of the `seconds` that it starts with.

    Every instant belongs to one category, the innermost open one ("other" when none is), so the parts make up
    the total whatever happens in between.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, seconds: Mapping[str, float] = {}) -> None:
        self._clock = clock
        self._seconds = {**dict.fromkeys(CATEGORIES, 0.0), **seconds}
        self._current = "other"
        self._since = clock()

    @contextmanager
    def __call__(self, category: str) -> Iterator[None]:
        """Count the time inside the block as `category`."""
        outer = self._switch(category)
        try:
            yield
        finally:
            self._switch(outer)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count `seconds` of `source` as `target`, at most what `source` has."""
        seconds = min(seconds, self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every category up to now."""
        self._switch(self._current)
        return dict(self._seconds)

    def _switch(self, category: str) -> str:
        if category not in self._seconds:
            raise ValueError(f"expected one of {', '.join(CATEGORIES)}, got {category!r}")
        now = self._clock()
        self._seconds[self._current] += now - self._since
        outer, self._current, self._since = self._current, category, now
        return outer
