"""A table of measurements: how long each kernel takes for a problem, and its fastest launches, on one machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from spfde._machine import Machine
from spfde.kernels.dispatch import table_file
from spfde.kernels.dispatch.measurement import Family, KernelMeasurement, family_of
from spfde.kernels.gpu import Config
from spfde.kernels.problem import Problem


@dataclass(frozen=True)
class Table:
    """Measured problems, one entry each, and the machine they hold for."""

    machine: Machine
    entries: tuple[KernelMeasurement, ...]

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any measurement."""
        return table_file.digest(self.machine, self.entries)

    @property
    def name(self) -> str:
        """Machine and digest: what a choice, a summary or a checkpoint names the table by."""
        return f"{self.machine.label}-{self.digest}"

    def at_any_density(self, problem: Problem) -> list[KernelMeasurement]:
        """The entries of this problem, whatever its density."""
        return [entry for entry in self.entries if entry.problem._replace(bucket=problem.bucket) == problem]

    def knows(self, problem: Problem) -> bool:
        """Whether it holds any density of this problem, or on a GPU of its family."""
        return bool(self.at_any_density(problem) or (self.machine.gpu and family_of(problem) in self._families))

    def measured(self, problem: Problem) -> KernelMeasurement | None:
        """The entry that decides for a problem: its own, or another density's that leaves no doubt.

        A sparse kernel that wins at some density wins at every lower one, and the dense one at every higher one. On a
        GPU a problem that was not measured follows the others of its family.
        """
        found = _decides(self.at_any_density(problem), problem.bucket)
        if found is None and self.machine.gpu:
            found = _decides(self._families.get(family_of(problem), ()), problem.bucket)
        return found

    def launch(self, op: str, like: Family, outputs: int) -> Config | None:
        """The fastest launch that was measured for an op of a family whose programs compute so many outputs."""
        return self._launches.get((op, like, outputs))

    def with_entries(self, entries: Iterable[KernelMeasurement]) -> Table:
        """This table and more measurements, which replace those of the same problems."""
        merged = {entry.problem: entry for entry in (*self.entries, *entries)}
        return Table(self.machine, tuple(merged.values()))

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON, whole or not at all."""
        table_file.write(Path(path), self.machine, self.entries)

    @classmethod
    def load(cls, path: str | Path, *, allow_other_machine: bool = False) -> Table:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a table, or it was measured on another machine, instruction set, number of threads,
                GPU, or version of spfde, torch or triton, and `allow_other_machine` is not set.
        """
        table = cls(*table_file.read(Path(path)))
        if not allow_other_machine:
            on_gpu = table.machine.gpu and torch.cuda.is_available()
            here = Machine.of_gpu() if on_gpu else Machine.of_cpu()
            table.check_machine(here, "spfde.tune, or Table.load(path, allow_other_machine=True)")
        return table

    def check_machine(self, here: Machine, instead: str) -> None:
        """Raises ValueError if the table was not measured on the machine `here`; `instead` is what to try."""
        if differs := here.differences(self.machine):
            raise ValueError(
                f"expected a table of this machine ({here.describe(differs)}), got one of "
                f"{self.machine.describe(differs)}, try {instead}"
            )

    @cached_property
    def _families(self) -> Mapping[Family, list[KernelMeasurement]]:
        found: dict[Family, list[KernelMeasurement]] = {}
        for entry in self.entries:
            found.setdefault(family_of(entry.problem), []).append(entry)
        return found

    @cached_property
    def _launches(self) -> Mapping[tuple[str, Family, int], Config]:
        return {
            (launch.op, like, launch.outputs): launch.config
            for like, entries in self._families.items()
            for entry in entries
            for launch in entry.launches
        }


def _decides(entries: Iterable[KernelMeasurement], bucket: int) -> KernelMeasurement | None:
    sparse = [e for e in entries if e.kernel != "dense" and e.problem.bucket <= bucket]
    dense = [e for e in entries if e.kernel == "dense" and e.problem.bucket >= bucket]
    if sparse:
        return max(sparse, key=lambda entry: entry.problem.bucket)
    return min(dense, key=lambda entry: entry.problem.bucket, default=None)
