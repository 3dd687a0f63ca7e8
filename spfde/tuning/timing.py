"""Timing in turn (A B C A B C), so that a machine that slows down slows all alike; and the time that a run may take.

The one clock of the library: under `spfde.tune`, `spfde bench`, `spfde plan`, `spfde.profile` and the benchmarks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

WARMUP = 3
AHEAD = 2_000_000  # cycles that a GPU idles while the CPU puts the work in line

Name = TypeVar("Name", bound=Hashable)
Calls = Mapping[Name, Callable[[], object]]
Times = dict[Name, list[float]]
Clock = Callable[[], float]


@dataclass
class TimeLimit:
    """The seconds that a run may take; `clock` counts them."""

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


CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


def interleaved(calls: Calls[Name], rounds: int, device: str = "cpu", clock: Clock = time.perf_counter) -> Times[Name]:
    """Seconds of every call in every round; each round runs every call once. device: its type.

    clock: of a CPU; `time.process_time` counts what this process had of it, so that others on the machine count little.
    """
    return on_gpu(calls, rounds)[0] if device == "cuda" else on_cpu(calls, rounds, clock=clock)


def cold(calls: Calls[Name], rounds: int, device: str = "cpu", clock: Clock = time.perf_counter) -> Times[Name]:
    """That with caches that hold nothing of the call before, as in a network, where others ran since.

    Of a CPU the caches that a core has to itself; a GPU is always timed like this.
    """
    if device == "cuda":
        return on_gpu(calls, rounds)[0]
    size = 2 * own_cache() * torch.get_num_threads()
    flush = torch.empty(size, dtype=torch.int8)
    return on_cpu(calls, rounds, before=flush.zero_, clock=clock)


def on_cpu(
    calls: Calls[Name],
    rounds: int,
    warmup: int = WARMUP,
    before: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Times[Name]:
    """That by the CPU's clock, after `warmup` unrecorded rounds. before: runs ahead of each call, untimed."""
    seconds: Times[Name] = {name: [] for name in calls}
    with no_collection():
        for _ in range(warmup + rounds):
            for name, call in calls.items():
                before()
                seconds[name].append(seconds_of(call, clock))
    return {name: times[warmup:] for name, times in seconds.items()}


def seconds_of(call: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call by a clock of the CPU."""
    start = clock()
    call()
    return clock() - start


@cache
def own_cache() -> int:
    """Bytes of the largest cache that a core has to itself; a mebibyte where the system does not say."""
    sizes = [0]
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level != "3" and size.endswith("K"):
            sizes.append(int(size[:-1]) * 1024)
    return max(sizes) or 2**20


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected inside the block: that would be charged to whatever is being timed."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def on_gpu(calls: Calls[Name], rounds: int) -> tuple[Times[Name], Times[Name]]:
    """That by the GPU's clock, out of a cold L2 cache and without the CPU's share; and the CPU's share."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    flush = torch.empty(2 * facts.L2_cache_size, dtype=torch.int8, device="cuda")
    events = {name: [(_event(), _event()) for _ in range(rounds)] for name in calls}
    host: Times[Name] = {name: [] for name in calls}
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
            host[name].append(time.perf_counter() - began)
            end.record()
        torch.cuda.synchronize()
    device = {name: [start.elapsed_time(end) * 1e-3 for start, end in pairs] for name, pairs in events.items()}
    return device, host


def medians(calls: Calls[Name], rounds: int, device: str = "cpu") -> dict[Name, float]:
    """The median seconds of every call."""
    return {name: median(times) for name, times in interleaved(calls, rounds, device).items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
