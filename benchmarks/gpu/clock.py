"""The package's own timing on a device, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spfde.tuning.timing import Budget, on_gpu

__all__ = ["Budget", "interleaved"]


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(device, host) milliseconds of every call in every round; each round runs every call once."""
    device, host = (
        {name: [1e3 * seconds for seconds in times] for name, times in clock.items()} for clock in on_gpu(calls, rounds)
    )
    return device, host
