"""How many bytes a cache may take: as many as it is given, or a share of what is free."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

SHARE = 0.5  # of what is free; the rest is for the training itself and for others
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Budget:
    """Bytes, and why so many."""

    size: int
    reason: str


def check(budget: object) -> None:
    """Checks what a user gives as a budget.

    Raises:
        ValueError: it is neither "auto" nor a whole number of bytes above 0.
    """
    whole = isinstance(budget, int) and not isinstance(budget, bool)
    if budget != "auto" and not (whole and budget > 0):
        raise ValueError(f"expected a budget in bytes > 0 or 'auto', got {budget!r}, try 2**30")


def resolve(budget: int | str, path: Path | None) -> Budget:
    """The bytes that a budget comes to now, in memory or, with a `path`, on its disk."""
    if isinstance(budget, int):
        return Budget(budget, f"{show(budget)}, as asked")
    free, where = (free_memory(), "memory") if path is None else (shutil.disk_usage(path).free, f"disk at {path}")
    return Budget(int(SHARE * free), f"{show(int(SHARE * free))}, {SHARE:.0%} of the {show(free)} of free {where}")


def free_memory() -> int:
    """Bytes of memory that this process may still take: what the system has, within its control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # not in one of its own
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def show(size: float) -> str:
    """Bytes in words: 512 B, 1.5 MiB."""
    if size < 1024:
        return f"{size:.0f} B"
    power = min(4, int(math.log2(size)) // 10)
    return f"{size / 1024**power:.3g} {' KMGT'[power]}iB"
