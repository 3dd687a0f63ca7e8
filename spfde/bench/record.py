"""What `spfde bench` measured, as values and as a file; these dataclasses are the schema (docs/bench.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from spfde._files import write_json
from spfde._schema import read, to_plain
from spfde.tuning.samples import Ratio, noise, ratio

FORMAT, VERSION = "spfde bench", 1
BASELINE = {"frozen": "step"}  # the part of the dense subject that a part is compared with, where it is not the same


@dataclass(frozen=True)
class Row:
    """One variant of a layer or network: seconds of every round by part.

    subject, kind: its name, and "layer" or "network". of, count: the network that has a layer so many times. variant:
    "dense ..." or the kernel that a sparse one was told to use, "auto" for the dispatch rule. kernel, reason: what ran.
    flops: of the dense subject by part. size: bytes of parameters and index. peak: the most bytes held in a step.
    absent: why a part ("all": every one) was not timed, or failed.
    """

    subject: str
    kind: str
    variant: str
    dtype: str
    threads: int
    device: str
    pattern: str = "dense"
    sparsity: float = 0.0
    density: float = 1.0
    of: str = ""
    count: int = 1
    kernel: str = ""
    reason: str = ""
    flops: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    size: int | None = None
    peak: int | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether nothing in it is sparse."""
        return self.variant.startswith("dense")

    @property
    def beside(self) -> tuple[Any, ...]:
        """What its dense baseline has in common with it."""
        return self.subject, self.of, self.dtype, self.threads, self.device

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same row in another file."""
        return (*self.beside, self.variant, self.pattern, self.sparsity)

    def median(self, part: str) -> float | None:
        """Median seconds of a part, None where it was not timed."""
        return median(self.seconds[part]) if self.seconds.get(part) else None

    def effective(self, part: str) -> float | None:
        """Dense FLOP/s that the part amounts to."""
        seconds = self.median(part)
        return self.flops[part] / seconds if seconds and self.flops.get(part) else None


@dataclass(frozen=True)
class Record:
    """A run of `spfde bench`. finished: whether it came to its end. machine: see `spfde.env.report`, `portable`.

    repeats: rounds of each pass over everything. passes: those that came to their end.
    """

    machine: Mapping[str, Any]
    date: str
    command: str
    repeats: int
    rows: tuple[Row, ...] = ()
    finished: bool = False
    passes: int = 0
    format: str = FORMAT
    version: int = VERSION

    def baseline(self, row: Row, part: str) -> Row | None:
        """The fastest dense row beside a row, by its part; None where none was timed."""
        dense = [r for r in self.rows if r.dense and r.beside == row.beside and r.seconds.get(part)]
        return min(dense, key=lambda r: r.median(part) or 0, default=None)

    def speedup(self, row: Row, part: str = "step") -> Ratio | None:
        """Seconds of the fastest dense variant over those of a row, of the same rounds; None where one is missing."""
        dense, of = self.baseline(row, BASELINE.get(part, part)), BASELINE.get(part, part)
        if dense is None or not row.seconds.get(part) or len(dense.seconds[of]) != len(row.seconds[part]):
            return None
        return ratio(dense.seconds[of], row.seconds[part])

    def ratios(self) -> list[Ratio]:
        """The speed-ups of all sparse rows and parts."""
        found = [self.speedup(row, part) for row in self.rows if not row.dense for part in row.seconds]
        return [each for each in found if each is not None]

    @property
    def doubt(self) -> float:
        """The median doubt of the speed-ups; 0 without any."""
        doubts = [each.doubt for each in self.ratios()]
        return median(doubts) if doubts else 0.0

    def noise(self) -> str | None:
        """What to say of the machine, if it is too noisy for what was measured."""
        return noise(self.ratios())

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; format and version first."""
        return to_plain(self)

    def save(self, path: Path) -> Path:
        """Writes JSON, whole or not at all."""
        write_json(path, self.to_dict())
        return path


def load(path: str | Path) -> Record:
    """Reads what `Record.save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of `spfde bench`, of another version, or damaged; names the file and the key.
    """
    return read(Record, path, "a file of spfde bench", "spfde bench --json again")
