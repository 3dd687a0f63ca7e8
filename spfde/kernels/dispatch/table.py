"""A table of measured kernels: what `spfde.tune` learned on one machine, used only where it is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spfde._native import native
from spfde.kernels import registry
from spfde.kernels.dispatch.problem import EMPTY, Problem
from spfde.sparse.plan import Window

DTYPES = ("float32", "float16", "bfloat16")
_COMMON, _CPU, _GPU = ("spfde", "torch"), ("cpu", "isa", "threads"), ("gpu", "triton")


@dataclass(frozen=True)
class Machine:
    """What measured seconds hold for: a CPU with an instruction set and threads, or a GPU with Triton's version."""

    spfde: str
    torch: str
    cpu: str = ""
    isa: str = ""
    threads: int = 0
    gpu: str = ""
    triton: str = ""

    @classmethod
    def here(cls, threads: int | None = None) -> Machine:
        """This process, with torch's threads unless told otherwise."""
        from spfde import __version__
        from spfde.env import cpu_name

        threads = torch.get_num_threads() if threads is None else threads
        return cls(__version__, str(torch.__version__), cpu_name(), native().isa(), threads)

    @classmethod
    def of_gpu(cls) -> Machine:
        """The current GPU in this process."""
        from spfde import __version__
        from spfde.kernels.triton import version

        return cls(__version__, str(torch.__version__), gpu=torch.cuda.get_device_name(), triton=version())

    @property
    def label(self) -> str:
        """Instruction set and threads, or the GPU."""
        return "-".join(self.gpu.lower().split()) if self.gpu else f"{self.isa}-{self.threads}t"

    def to_dict(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value}


class Entry(NamedTuple):
    """Median seconds of forward + backward by kernel."""

    problem: Problem
    seconds: tuple[tuple[str, float], ...]

    @property
    def kernel(self) -> str:
        """The fastest; of equals, the first."""
        return min(self.seconds, key=lambda pair: pair[1])[0]

    @property
    def speedup(self) -> float:
        """The fastest sparse kernel against the masked dense product."""
        seconds = dict(self.seconds)
        return seconds.pop("dense") / min(seconds.values())

    @property
    def density(self) -> float:
        """The density it was measured at."""
        return self.problem.density


@dataclass(frozen=True)
class Table:
    """Measured problems, one entry each, and the machine they hold for."""

    machine: Machine
    entries: tuple[Entry, ...]

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any measurement."""
        return sha256(json.dumps(_to_json(self)).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Machine and digest: what a choice, a summary or a checkpoint names the table by."""
        return f"{self.machine.label}-{self.digest}"

    def measured(self, problem: Problem) -> Entry | None:
        """The entry that settles the problem: its own, or another density's that leaves no doubt.

        A sparse kernel that wins at some density wins at every lower one, and a dense one at every higher one.
        """
        same = self._at_any_density(problem)
        sparse = [e for e in same if e.kernel != "dense" and e.problem.bucket <= problem.bucket]
        dense = [e for e in same if e.kernel == "dense" and e.problem.bucket >= problem.bucket]
        if sparse:
            return max(sparse, key=lambda entry: entry.problem.bucket)
        return min(dense, key=lambda entry: entry.problem.bucket) if dense else None

    def _at_any_density(self, problem: Problem) -> list[Entry]:
        return [entry for entry in self.entries if entry.problem._replace(bucket=problem.bucket) == problem]

    def with_entries(self, entries: Iterable[Entry]) -> Table:
        """This table and more measurements."""
        return Table(self.machine, (*self.entries, *entries))

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON."""
        Path(path).write_text(json.dumps(_to_json(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, allow_other_machine: bool = False) -> Table:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a table, or it was measured on another machine, instruction set, number of threads,
                GPU, or version of spfde, torch or triton, and `allow_other_machine` is not set.
        """
        try:
            table = _from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected a table written by Table.save in {path}, got {type(error).__name__}: {error}, try spfde.tune"
            ) from error
        if not allow_other_machine:
            here = Machine.of_gpu() if table.machine.gpu and torch.cuda.is_available() else Machine.here()
            table.check_machine(here, "spfde.tune, or Table.load(path, allow_other_machine=True)")
        return table

    def check_machine(self, here: Machine, instead: str) -> None:
        """Raises ValueError if the table was not measured on the machine `here`; `instead` is what to try."""
        there = asdict(self.machine)
        if differs := [name for name, value in asdict(here).items() if there[name] != value]:
            raise ValueError(
                f"expected a table of this machine ({_named(asdict(here), differs)}), got one of "
                f"{_named(there, differs)}, try {instead}"
            )


_IN_USE: dict[str, Table] = {}


def use(table: Table) -> str:
    """Makes a table known to the ops, which can only be told its name, and returns that."""
    _IN_USE[table.name] = table
    return table.name


def in_use(name: str) -> Table | None:
    """The table of this name that some layer uses, if any."""
    return _IN_USE.get(name)


def _named(machine: Mapping[str, Any], fields: list[str]) -> str:
    return ", ".join(f"{name} {machine[name] or 'none'}" for name in fields)


def _to_json(table: Table) -> dict[str, Any]:
    return {"machine": table.machine.to_dict(), "entries": [_entry_to_json(entry) for entry in table.entries]}


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    fields = {**entry.problem._asdict(), "window": entry.problem.window._asdict(), "seconds": dict(entry.seconds)}
    if entry.problem.dtype == "float32":  # files without it stay what they are, to the digest
        del fields["dtype"]
    return fields


def _machine(values: dict[str, Any]) -> Machine:
    """One of a CPU names neither a GPU nor triton, one of a GPU nothing of the CPU."""
    machine = Machine(**values)
    if not (machine.to_dict().keys() == values.keys() in ({*_COMMON, *_CPU}, {*_COMMON, *_GPU})):
        raise ValueError(f"expected a machine with {', '.join(_CPU)} or {', '.join(_GPU)}, got {', '.join(values)}")
    return machine


def _from_json(values: dict[str, Any]) -> Table:
    return Table(_machine(values["machine"]), tuple(_entry(entry) for entry in values["entries"]))


def _entry(values: dict[str, Any]) -> Entry:
    values = dict(values)
    seconds = values.pop("seconds")
    if "dense" not in seconds or len(seconds) < 2 or not seconds.keys() <= {*registry.names()}:
        raise ValueError(f"expected seconds of 'dense' and other kernels, got those of {sorted(seconds)}")
    for kernel, value in seconds.items():
        if not isinstance(value, float) or not isfinite(value) or value <= 0:
            raise ValueError(f"expected positive seconds of {kernel!r}, got {value!r}")
    dtype = values.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    window = Window(**{name: _ints(value) for name, value in values.pop("window").items()})
    problem = Problem(window=window, dtype=dtype, **{name: _ints(value) for name, value in values.items()})
    if not 0 <= problem.bucket <= EMPTY or len(problem.shape) not in (2, 4):
        raise ValueError(f"expected a linear or convolution problem, got {problem}")
    return Entry(problem, tuple(seconds.items()))


def _ints(value: Any) -> Any:
    """A whole number, or a list of them as a tuple."""
    if isinstance(value, list):
        return tuple(_ints(item) for item in value)
    if type(value) is not int:
        raise TypeError(f"expected whole numbers, got {value!r}")
    return value
