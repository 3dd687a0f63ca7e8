"""What a run on a GPU measured: every raw timing, and where."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gpu.cases import Case

DENSE = ("cublas", "cudnn channels_last", "cudnn contiguous")


@dataclass(frozen=True)
class Cell:
    """One case: milliseconds on the device of every round, by way and part; `absent` says why a way has none.

    host: milliseconds that the same calls took on the CPU, where the device does not wait for it.
    """

    case: Case
    device: Mapping[str, Mapping[str, Sequence[float]]]
    host: Mapping[str, Mapping[str, Sequence[float]]]
    absent: Mapping[str, str] = field(default_factory=dict)

    def median(self, way: str, part: str) -> float | None:
        """Milliseconds on the device, None where it was not timed."""
        times = self.device.get(way, {}).get(part)
        return median(times) if times else None

    def speedup(self, part: str, way: str = "spfde") -> float | None:
        """Time of the fastest dense way over that of `way`, None where either was not timed."""
        dense = [t for name in DENSE if (t := self.median(name, part)) is not None]
        mine = self.median(way, part)
        return min(dense) / mine if dense and mine else None


@dataclass(frozen=True)
class Record:
    """A run. machine: GPU, driver, versions, clocks, date. unfinished: cases that its time did not reach."""

    machine: Mapping[str, Any]
    cells: Sequence[Cell]
    unfinished: Sequence[str] = ()

    def write(self, folder: Path) -> Path:
        """Writes it as JSON, whole or not at all, under a name made of GPU and date; returns where."""
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", str(self.machine["gpu"]).lower()).strip("-")
        path = folder / f"{name}-{str(self.machine['date'])[:10]}.json"
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(draft, path)
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """Reads what `write` wrote."""
        fields = json.loads(path.read_text())
        cells = [Cell(**{**cell, "case": Case(**cell["case"])}) for cell in fields["cells"]]
        return cls(**{**fields, "cells": cells})


def line(cell: Cell) -> str:
    """The cell as one line: speed-ups over the fastest dense way, part by part."""
    parts = next(iter(cell.device.values()), {})
    text = "  ".join(f"{part} {_times(cell.speedup(part))}" for part in parts)
    absent = "".join(f"  [no {way}: {why}]" for way, why in cell.absent.items())
    return f"{cell.case}:  {text or 'nothing timed'}{absent}"


def _times(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"
