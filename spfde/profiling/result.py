"""What a profile found: values, tables, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spfde.profiling.kinds import KINDS, LOSS
from spfde.profiling.memory import Memory
from spfde.profiling.timeline import PYTHON, Bucket

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Part:
    """Seconds per step of one kind of work in one place; the fields of `timeline.Bucket`."""

    phase: str
    layer: str
    op: str
    kind: str
    seconds: float


@dataclass(frozen=True)
class Layer:
    """One layer of a step. seconds by phase; kept: bytes that it leaves for the backward pass."""

    name: str
    op: str
    forward: float
    backward: float
    kept: int

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Way:
    """One way to take the step. seconds: of the step on its own, not looked into, which the parts come to."""

    name: str
    seconds: float
    parts: tuple[Part, ...]
    memory: Memory

    @property
    def accounted(self) -> float:
        """Share of the step's seconds that the parts come to: 1 but for medians that do not add up."""
        return sum(part.seconds for part in self.parts) / self.seconds

    def kinds(self) -> dict[str, float]:
        """Seconds by kind of work, in a fixed order."""
        found = _sums((part.kind, part.seconds) for part in self.parts)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def layers(self) -> tuple[Layer, ...]:
        """Modules that did something, in order of execution, with the functions that containers call themselves."""
        grouped: dict[str, list[Part]] = {}
        for part in self._split()[0]:
            grouped.setdefault(part.layer, []).append(part)
        rows = []
        for name, parts in grouped.items():
            seconds = _sums((part.phase, part.seconds) for part in parts)
            ops, kept = ", ".join(dict.fromkeys(part.op for part in parts)), self.memory.layers.get(name, 0)
            rows.append(Layer(name, ops, seconds.get(FORWARD, 0.0), seconds.get(BACKWARD, 0.0), kept))
        return tuple(rows)

    def around(self) -> dict[str, float]:
        """Seconds by kind outside the layers: loss, optimizer, data, the autograd engine, Python between layers."""
        return _sums((part.kind, part.seconds) for part in self._split()[1])

    def _split(self) -> tuple[list[Part], list[Part]]:
        """The parts of layers, and all others. Python in a layer is the layer's; in a container it is nobody's."""
        work = {(p.layer, p.op) for p in self.parts if p.op and p.kind not in (PYTHON, LOSS)}
        own = [p for p in self.parts if (p.layer, p.op) in work and p.kind != LOSS]
        return own, [p for p in self.parts if (p.layer, p.op) not in work or p.kind == LOSS]


@dataclass(frozen=True)
class StepProfile:
    """Where the time and memory of a training step go; str() is the tables.

    dense: the same network with dense weights and nothing fused, None if that is what the model is.
    """

    model: Way
    dense: Way | None
    batch: int
    threads: int
    rounds: int

    @property
    def ways(self) -> tuple[Way, ...]:
        """The model's, then the dense one if there is one."""
        return (self.model,) if self.dense is None else (self.model, self.dense)

    @property
    def speedup(self) -> float | None:
        """Seconds of the dense step over the model's."""
        return None if self.dense is None else self.dense.seconds / self.model.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "speedup": self.speedup, "kinds": {way.name: way.kinds() for way in self.ways}}

    def save(self, path: str | Path) -> Path:
        """Writes `to_dict` as JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        return path

    def save_plot(self, path: str | Path) -> Path:
        """Draws the step by kind and by layer into a file (.png, .svg, .pdf).

        Raises:
            ImportError: matplotlib is not installed.
        """
        from spfde.profiling.plot import draw

        draw(self).savefig(path)
        return Path(path)

    def __str__(self) -> str:
        from spfde.profiling.text import tables

        return "\n\n".join("\n".join([title, *aligned(rows)]) for title, rows in tables(self))


def parts_of(seconds: dict[Bucket, float]) -> tuple[Part, ...]:
    """The parts of a step, in order of execution."""
    return tuple(Part(*bucket, taken) for bucket, taken in seconds.items())


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines: text at the left, numbers (every column from the third on) at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides: list[Callable[[str, int], str]] = [str.ljust, str.ljust, *(str.rjust for _ in widths[2:])]
    return ["  ".join(s(c, w) for s, c, w in zip(sides, row, widths, strict=True)).rstrip() for row in rows]


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in pairs:
        found[key] = found.get(key, 0.0) + value
    return found
