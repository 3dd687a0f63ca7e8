"""The most memory that the process held at once."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

PROCESS = Path("/proc/self")


def peak_bytes(process: Path = PROCESS) -> int:
    """Return the peak of resident memory since `forget_peak`, or since the process began where that failed."""
    with contextlib.suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak(process: Path = PROCESS) -> None:
    """Start a new peak at what is held now; without effect where the system does not allow it."""
    with contextlib.suppress(OSError):
        (process / "clear_refs").write_text("5")
