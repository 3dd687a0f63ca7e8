"""The package's own timing as medians and quartiles, and what a measurement has to name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar

import torch

from spfde import env
from spfde.tuning import timing
from spfde.tuning.samples import Timing, summarise

WARMUP = 2
FACTS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")
Name = TypeVar("Name", bound=Hashable)
Calls = Mapping[Name, Callable[[], object]]


def interleaved(calls: Calls[Name], rounds: int, warmup: int = WARMUP) -> dict[Name, Timing]:
    """Seconds on the CPU of each call, over `rounds` rounds in which every call runs once."""
    return {name: summarise(seconds) for name, seconds in timing.on_cpu(calls, rounds, warmup).items()}


def by_device(calls: Calls[Name], rounds: int, device: str) -> tuple[dict[Name, Timing], dict[Name, Timing]]:
    """That by the clock of a device, and what the CPU took for the same calls; nothing where both are one."""
    if device != "cuda":
        return interleaved(calls, rounds), {}
    both = timing.on_gpu(calls, rounds)
    seconds, host = ({name: summarise(times) for name, times in clock.items()} for clock in both)
    return seconds, host


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a measurement has to name: processor, instruction set and threads, or GPU and clocks; versions and date."""
    facts = env.report()
    about = {
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
    return about if device == "cpu" else {**_gpu(facts), **about}


def _gpu(facts: Mapping[str, Any]) -> dict[str, Any]:
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "l2_bytes": device.L2_cache_size,
        "before": nvidia_smi(),
        "triton": facts["triton"],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, power and temperature at the moment; empty where nvidia-smi does not answer."""
    query = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(FACTS, (part.strip() for part in answer.splitlines()[0].split(",")), strict=False))


def record_name(about: Mapping[str, Any]) -> str:
    """The name of a record's file: its processor and date."""
    name = about.get("gpu") or f"{about['cpu']}-{about['isa']}-{about['threads']}t"
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{about['date'][:10]}.json"


def command() -> str:
    """The command line that runs this process."""
    return shlex.join(["python", *sys.argv])


def parts(text: str) -> list[str]:
    """The items of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
