"""What a plan says, as values and as a file; these dataclasses are the schema (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spfde._files import write_json
from spfde._schema import read, to_plain
from spfde.planning.text import page

FORMAT, VERSION = "spfde plan", 1


@dataclass(frozen=True)
class LayerPlan:
    """One layer.

    dense, planned: seconds of its part of a step. break_even: the least sparsity at which a sparse kernel wins, None
    where none does up to 99%. source: of the least certain figure: measured, interpolated, roofline.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    kernel: str
    reason: str
    dense: float
    planned: float
    break_even: float | None
    source: str


@dataclass(frozen=True)
class Lever:
    """What a lever saves: shares of the training's FLOPs and seconds, bytes of a step's memory. note: of what."""

    name: str
    flops: float
    seconds: float | None
    memory: int
    note: str


@dataclass(frozen=True)
class Plan:
    """What a training will take; str() is the page.

    dense, sparse: seconds of a step. frozen: of one with the most blocks frozen that the recipe freezes (half of them
    where it freezes none), None where the model has no blocks. stages: of a step with the first 0, 1, ... frozen. mean:
    of a step over all epochs. kept_share: of an epoch's samples that the sieve leaves. parts: seconds of the sparse
    step by kind of work. guessed: share of the sparse step's seconds that are from the roofline alone.
    """

    device: str
    measured: str
    batch: int
    recipe: Mapping[str, Any]
    layers: tuple[LayerPlan, ...]
    dense: float
    sparse: float
    frozen: float | None
    stages: tuple[float, ...]
    mean: float
    kept_share: float
    levers: tuple[Lever, ...]
    parts: Mapping[str, float]
    guessed: float
    advice: tuple[str, ...]
    format: str = FORMAT
    version: int = VERSION

    @property
    def speedup(self) -> float:
        """Of the whole training over dense training of as many epochs."""
        return self.dense / (self.mean * self.kept_share)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; format and version first."""
        return to_plain(self)

    def save(self, path: str | Path) -> Path:
        """Writes `to_dict` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())
        return Path(path)

    def __str__(self) -> str:
        return page(self)


def load(path: str | Path) -> Plan:
    """Reads what `Plan.save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no plan, of another version, or damaged; names the file and the key.
    """
    return read(Plan, path, "a plan", "spfde plan --json again")
