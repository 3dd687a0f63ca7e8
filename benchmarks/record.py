"""What a run measured, on a CPU or a GPU, and the figures that are read from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spfde.tuning.samples import Timing

NOISE = 1.05  # two times this close are alike
OURS = ("native", "triton", "cuda", "2:4")


Timings = Mapping[str, Mapping[str, Timing]]  # by variant and part


@dataclass(frozen=True)
class Cell:
    """All variants of one case, each part timed in turn.

    layer, group: names of a layer or network. lanes: batch x output positions. host: seconds that the same calls took
    on the CPU, where the device does not wait for it. absent: why a variant cannot be timed here. failed: what went
    wrong with a variant, or a part, that should run. auto: the kernel that "auto" takes, and why.
    """

    layer: str
    kind: str
    group: str
    lanes: int
    pattern: str
    sparsity: float
    density: float
    seconds: Timings
    absent: Mapping[str, str]
    dtype: str = "float32"
    name: str = ""
    host: Timings = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    auto: str = ""
    reason: str = ""

    def median(self, name: str | None, part: str = "step") -> float | None:
        """Seconds of a part of a variant, None where it was not timed."""
        timing = self.seconds.get(name or "", {}).get(part)
        return None if timing is None else timing.median

    def best_dense(self, part: str = "step") -> str | None:
        """The fastest dense variant; None where none was timed."""
        dense = [name for name, parts in self.seconds.items() if name.startswith("dense") and part in parts]
        return min(dense, key=lambda name: self.median(name, part), default=None)

    @property
    def ours(self) -> str:
        """The sparse kernel of the device."""
        return next((name for name in OURS if name in self.seconds), OURS[0])

    def speedup(self, name: str | None = None, part: str = "step", over: str | None = None) -> float | None:
        """Time of the best dense variant for `over` (the same part) over that of `name` (ours), None if not timed."""
        dense = self.median(self.best_dense(over or part), over or part)
        mine = self.median(name or self.ours, part)
        return dense / mine if dense and mine else None

    def efficiency(self, name: str | None = None) -> float | None:
        """Speed-up x density: 1 when the stored weights' multiply-adds run as fast as the dense layer's own."""
        speedup = self.speedup(name)
        return None if speedup is None else speedup * self.density

    @property
    def over_sparseprop(self) -> float | None:
        """Time of SparseProp over that of our native kernel."""
        theirs, mine = self.median("sparseprop"), self.median("native")
        return theirs / mine if theirs and mine else None

    @property
    def missed(self) -> float | None:
        """Time of a step as "auto" runs it over that of the fastest of our kernels: 1 where it chose right."""
        ours = [t for name, parts in self.seconds.items() if _is_ours(name) and (t := self.median(name))]
        taken = self.median(self.auto)
        return taken / min(ours) if taken and ours else None

    @property
    def launch_bound(self) -> dict[str, float]:
        """Time on the CPU over that on the device of our parts where it is longer: a network would wait for the CPU."""
        host = {part: timing.median for part, timing in self.host.get(self.ours, {}).items()}
        device = {part: self.median(self.ours, part) for part in host}
        return {part: host[part] / device[part] for part in host if device[part] and host[part] > device[part]}


def _is_ours(name: str) -> bool:
    return name.startswith(OURS) or name in ("masked", "auto")


@dataclass(frozen=True)
class Record:
    """A run: where (see `timing.machine`), how, its cells, and the cases that its time did not reach."""

    machine: dict[str, Any]
    command: str
    rounds: int
    cells: Sequence[Cell]
    unfinished: Sequence[str] = ()

    @property
    def failures(self) -> Sequence[tuple[Cell, str, str]]:
        """(cell, variant or part, what went wrong) of all that failed."""
        return [(cell, name, why) for cell in self.cells for name, why in cell.failed.items()]

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(draft, path)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Reads what `write` wrote, also before cells had parts.

        Raises:
            SystemExit: there is no such file, or it is no record.
        """
        try:
            fields = json.loads(path.read_text())
            return cls(**{**fields, "cells": [_cell(cell) for cell in fields["cells"]]})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SystemExit(f"expected {path} to be a record of layers.py, got {error!r}, try another file") from error


def _cell(fields: dict[str, Any]) -> Cell:
    return Cell(**{**fields, "seconds": _timings(fields["seconds"]), "host": _timings(fields.get("host", {}))})


def _timings(seconds: Mapping[str, Any]) -> Timings:
    return {
        name: {part: Timing(**timing) for part, timing in ({"step": parts} if "median" in parts else parts).items()}
        for name, parts in seconds.items()
    }


def line(cell: Cell) -> str:
    """The cell as one line: speed-ups over the fastest dense variant, part by part, and what to know about them."""
    parts = dict.fromkeys(part for timed in cell.seconds.values() for part in timed)
    text = "  ".join(f"{part} {times(cell.speedup(part=part))}" for part in parts)
    notes = [f"no {name}: {why}" for name, why in cell.absent.items()]
    notes += [f"launch bound: {part}, host {ratio:.1f} x device" for part, ratio in cell.launch_bound.items()]
    if (missed := cell.missed) is not None and missed > NOISE:
        notes.append(f"auto takes {cell.auto}: {missed:.2f} x the time of our fastest")
    notes += [f"FAILED {name}: {why}" for name, why in cell.failed.items()]
    return f"{cell.name}:  {text or 'nothing timed'}" + "".join(f"  [{note}]" for note in notes)


def times(speedup: float | None) -> str:
    """2.5 as 2.50x, None as -."""
    return "-" if speedup is None else f"{speedup:.2f}x"
