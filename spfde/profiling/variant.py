"""The time and memory of one form of a training step, by kind of work and by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spfde.profiling.kinds import KINDS, LOSS
from spfde.profiling.memory import Memory
from spfde.profiling.timeline import BACKWARD, FORWARD, PYTHON, Bucket


@dataclass(frozen=True)
class Part:
    """Seconds per step of one kind of work in one place; the fields of `timeline.Bucket`."""

    phase: str
    layer: str
    op: str
    kind: str
    seconds: float


@dataclass(frozen=True)
class LayerTime:
    """One layer of a step: seconds by phase. kept: bytes that it leaves for the backward pass."""

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
class Variant:
    """One form of the step: the model as it is, or dense. seconds: of the step untraced, which the parts sum to."""

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

    def layers(self) -> tuple[LayerTime, ...]:
        """Modules that did something, in order of execution, with the functions that containers call themselves."""
        grouped: dict[str, list[Part]] = {}
        for part in self._split()[0]:
            grouped.setdefault(part.layer, []).append(part)
        rows = []
        for name, parts in grouped.items():
            seconds = _sums((part.phase, part.seconds) for part in parts)
            ops, kept = ", ".join(dict.fromkeys(part.op for part in parts)), self.memory.layers.get(name, 0)
            rows.append(LayerTime(name, ops, seconds.get(FORWARD, 0.0), seconds.get(BACKWARD, 0.0), kept))
        return tuple(rows)

    def around(self) -> dict[str, float]:
        """Seconds by kind outside the layers: loss, optimizer, data, the autograd engine, Python between layers."""
        return _sums((part.kind, part.seconds) for part in self._split()[1])

    def _split(self) -> tuple[list[Part], list[Part]]:
        """The parts of layers, and all others. Python in a layer is the layer's; in a container it is nobody's."""
        work = {(p.layer, p.op) for p in self.parts if p.op and p.kind not in (PYTHON, LOSS)}
        own = [p for p in self.parts if (p.layer, p.op) in work and p.kind != LOSS]
        return own, [p for p in self.parts if (p.layer, p.op) not in work or p.kind == LOSS]


def parts_of(seconds: dict[Bucket, float]) -> tuple[Part, ...]:
    """The parts of a step, in order of execution."""
    return tuple(Part(*bucket, taken) for bucket, taken in seconds.items())


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in pairs:
        found[key] = found.get(key, 0.0) + value
    return found
