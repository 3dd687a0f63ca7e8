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

from gpu.cases import Case, Network

DENSE = ("cublas", "cudnn channels_last", "cudnn contiguous", "dense")
NOISE = 1.05  # two times this close are alike


@dataclass(frozen=True)
class Cell:
    """One case: milliseconds on the device of every round, by way and part.

    host: milliseconds that the same calls took on the CPU, where the device does not wait for it. absent: why a peer
    cannot be timed here. failed: what went wrong with a way, or a part, that should run. auto: the way that
    `layer.kernel = "auto"` takes, and why.
    """

    case: Case | Network
    device: Mapping[str, Mapping[str, Sequence[float]]]
    host: Mapping[str, Mapping[str, Sequence[float]]]
    absent: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    auto: str = ""
    reason: str = ""

    def median(self, way: str, part: str) -> float | None:
        """Milliseconds on the device, None where it was not timed."""
        return _median(self.device, way, part)

    def speedup(self, part: str, way: str = "spfde", over: str | None = None) -> float | None:
        """Time of the fastest dense way for `over` (the same part) over that of `way`, None if not both were timed."""
        dense = [t for name in DENSE if (t := self.median(name, over or part)) is not None]
        mine = self.median(way, part)
        return min(dense) / mine if dense and mine else None

    @property
    def missed(self) -> float | None:
        """Time of a step as "auto" runs it over that of the fastest of our ways: 1 where it chose right."""
        taken = self.median(self.auto, "step")
        ours = [t for name in self.device if name.startswith("spfde") and (t := self.median(name, "step")) is not None]
        return taken / min(ours) if taken else None

    @property
    def launch_bound(self) -> Mapping[str, float]:
        """Time on the CPU over that on the device of our parts where it is longer: a network would wait for the CPU."""
        host = {part: _median(self.host, "spfde", part) for part in self.device.get("spfde", {})}
        device = {part: self.median("spfde", part) for part in host}
        return {part: host[part] / device[part] for part in host if host[part] and host[part] > device[part]}


@dataclass(frozen=True)
class Record:
    """A run. machine: GPU, driver, versions, clocks, date. unfinished: cases that its time did not reach."""

    machine: Mapping[str, Any]
    cells: Sequence[Cell]
    unfinished: Sequence[str] = ()

    @property
    def failures(self) -> Sequence[tuple[Cell, str, str]]:
        """(cell, way or part, what went wrong) of all that failed."""
        return [(cell, name, why) for cell in self.cells for name, why in cell.failed.items()]

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
        """Reads what `write` wrote.

        Raises:
            SystemExit: there is no such file, or it is no record.
        """
        try:
            fields = json.loads(path.read_text())
            cells = [Cell(**{**cell, "case": _case(cell["case"])}) for cell in fields["cells"]]
            return cls(**{**fields, "cells": cells})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SystemExit(f"expected {path} to be a record of gpu.run, got {error!r}, try another file") from error


def line(cell: Cell) -> str:
    """The cell as one line: speed-ups over the fastest dense way, part by part, and what to know about them."""
    parts = dict.fromkeys(part for way in cell.device.values() for part in way)
    text = "  ".join(f"{part} {times(cell.speedup(part))}" for part in parts)
    notes = [f"no {way}: {why}" for way, why in cell.absent.items()]
    notes += [f"launch bound: {part}, host {ratio:.1f} x device" for part, ratio in cell.launch_bound.items()]
    if (missed := cell.missed) is not None and missed > NOISE:
        notes.append(f"auto takes {cell.auto}: {missed:.2f} x the time of our fastest")
    notes += [f"FAILED {name}: {why}" for name, why in cell.failed.items()]
    return f"{cell.case}:  {text or 'nothing timed'}" + "".join(f"  [{note}]" for note in notes)


def times(speedup: float | None) -> str:
    """2.5 as 2.50x, None as -."""
    return "-" if speedup is None else f"{speedup:.2f}x"


def _median(timed: Mapping[str, Mapping[str, Sequence[float]]], way: str, part: str) -> float | None:
    rounds = timed.get(way, {}).get(part)
    return median(rounds) if rounds else None


def _case(fields: Mapping[str, Any]) -> Case | Network:
    return (Network if "model" in fields else Case)(**fields)
