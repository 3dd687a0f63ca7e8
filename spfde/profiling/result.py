"""What a profile found: a step beside its dense baseline, as values, tables and files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spfde.profiling.plot import draw
from spfde.profiling.text import Table, aligned, tables
from spfde.profiling.variant import Variant


@dataclass(frozen=True)
class StepProfile:
    """Where the time and memory of a training step go; str() is the tables.

    dense: the same network with dense weights and nothing fused, None if that is what the model is.
    """

    model: Variant
    dense: Variant | None
    batch: int
    threads: int
    rounds: int

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The model's, then the dense one if there is one."""
        return (self.model,) if self.dense is None else (self.model, self.dense)

    @property
    def speedup(self) -> float | None:
        """Seconds of the dense step over the model's."""
        return None if self.dense is None else self.dense.seconds / self.model.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "speedup": self.speedup, "kinds": {each.name: each.kinds() for each in self.variants}}

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
        draw(self.variants, f"batch {self.batch}, threads {self.threads}").savefig(path)
        return Path(path)

    def tables(self) -> list[Table]:
        """By kind of work, by layer, and memory: a title each, and rows of words."""
        return tables(self.variants, f"batch {self.batch}, threads {self.threads}, medians of {self.rounds}")

    def __str__(self) -> str:
        return "\n\n".join("\n".join([title, *aligned(rows)]) for title, rows in self.tables())
