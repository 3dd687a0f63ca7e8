"""What a run of the layer benchmark measured, and the figures that are read from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import PEER_SPARSITY, PEER_TARGET, target


@dataclass(frozen=True)
class Timing:
    """Seconds per step: median, minimum and quartiles of the rounds."""

    median: float
    minimum: float
    q1: float
    q3: float

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        return (self.q3 - self.q1) / 2 / self.median


@dataclass(frozen=True)
class Cell:
    """All ways of one layer at one pattern and sparsity, timed in turn; `absent` says why a way was not."""

    layer: str
    kind: str
    group: str
    lanes: int
    pattern: str
    sparsity: float
    density: float
    seconds: dict[str, Timing]
    absent: dict[str, str]

    @property
    def best_dense(self) -> str | None:
        """The fastest dense way; None where nothing was timed."""
        names = [name for name in self.seconds if name.startswith("dense")]
        return min(names, key=lambda name: self.seconds[name].median, default=None)

    def speedup(self, name: str | None) -> float | None:
        """Time of the best dense way over that of `name`, None where it was not timed."""
        return self._ratio(self.best_dense, name)

    def efficiency(self, name: str) -> float | None:
        """Speed-up x density: 1 when the stored weights' multiply-adds run as fast as the dense layer's own."""
        speedup = self.speedup(name)
        return None if speedup is None else speedup * self.density

    @property
    def over_sparseprop(self) -> float | None:
        """Time of SparseProp over that of our native kernel."""
        return self._ratio("sparseprop", "native")

    def verdicts(self) -> Iterator[tuple[str, float | None, float]]:
        """(what, measured or None if absent, aimed at) of each target that applies here."""
        aim = target(self.pattern, self.kind, self.sparsity)
        if aim is not None:
            yield "dense", self.speedup("native"), aim
        if self.pattern == "unstructured" and self.sparsity == PEER_SPARSITY:
            yield "SparseProp", self.over_sparseprop, PEER_TARGET

    def _ratio(self, base: str | None, name: str | None) -> float | None:
        timed = base in self.seconds and name in self.seconds
        return self.seconds[base].median / self.seconds[name].median if timed else None


@dataclass(frozen=True)
class Record:
    """A run: where, how, and its cells. `machine` is what `timing.machine` says."""

    machine: dict[str, Any]
    command: str
    rounds: int
    cells: Sequence[Cell]

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Reads what `write` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "cells": [_cell(cell) for cell in fields["cells"]]})


def _cell(fields: dict[str, Any]) -> Cell:
    return Cell(**{**fields, "seconds": {name: Timing(**timing) for name, timing in fields["seconds"].items()}})
