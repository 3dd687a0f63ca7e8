"""Timing on a device: in turn, out of a cold L2 cache, without the CPU's share; and the time that a run may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

WARMUP = 3
AHEAD = 2_000_000  # cycles that the device idles while the CPU puts the work in line


@dataclass
class Budget:
    """The seconds a run may take; `clock` counts them."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - (self.clock() - self.start))

    def allows(self, seconds: float) -> bool:
        """Whether something that long can still be done."""
        return seconds < self.left


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(device, host) milliseconds of every call in every round; each round runs every call once."""
    flush = torch.empty(2 * l2_bytes(), dtype=torch.int8, device="cuda")
    events = {name: [_events() for _ in range(rounds)] for name in calls}
    host: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    for index in range(rounds):
        for name, call in calls.items():
            torch.cuda._sleep(AHEAD)
            flush.zero_()
            start, end = events[name][index]
            start.record()
            began = time.perf_counter()
            call()
            host[name].append((time.perf_counter() - began) * 1e3)
            end.record()
        torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}, host


def l2_bytes() -> int:
    """Size of the device's L2 cache."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
