"""Timing in turn (A B C A B C), so that a machine that slows down slows all alike."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar

import numpy as np
import torch
from record import Timing

from spfde import env
from spfde.tuning.timing import on_cpu

WARMUP = 2
Name = TypeVar("Name", bound=Hashable)


def interleaved(steps: Mapping[Name, Callable[[], object]], rounds: int, warmup: int = WARMUP) -> dict[Name, Timing]:
    """Seconds of each step, over `rounds` rounds in which every step runs once, after `warmup` unrecorded ones."""
    return {name: summarise(seconds) for name, seconds in on_cpu(steps, rounds, warmup).items()}


def summarise(seconds: list[float]) -> Timing:
    """Median, minimum and quartiles."""
    q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, min(seconds), q1, q3)


def machine() -> dict[str, Any]:
    """What a measurement has to name: processor, cores, instruction set, threads, versions and date."""
    facts = env.report()
    return {
        "cpu": facts["cpu"],
        "cores": os.cpu_count(),
        "usable_cores": facts["threads"]["cpus"],
        "threads": torch.get_num_threads(),
        "isa": facts["native"].get("isa"),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "torch": facts["torch"],
        "spfde": facts["spfde"],
        "python": facts["python"],
        "platform": facts["platform"],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "warnings": facts["warnings"],
    }


def command() -> str:
    """The command line that runs this process."""
    return shlex.join(["python", *sys.argv])


def parts(text: str) -> list[str]:
    """The items of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
