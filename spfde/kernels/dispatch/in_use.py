"""The tables in use: those of single layers, by name, and those of the process, one for each device.

An op is given strings only, so a layer's table goes by its name, and "auto" stands for the process's. A kernel does not
know for which layer it runs: its launch is looked up in the tables of all layers, in the one used last first, and then
in the process's. That changes no choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

from spfde._machine import Machine
from spfde.kernels.dispatch.measurement import Family
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import Config

VARIABLE = "SPFDE_TABLE"

_known: dict[str, Table] = {}  # by name, the one used last at the end
_process: dict[str, Table] = {}  # by the GPU's name, "" for the CPU


def use(table: Table) -> str:
    """Makes a table known to the ops and returns the name that it goes by."""
    _known.pop(table.name, None)
    _known[table.name] = table
    launch.cache_clear()
    return table.name


def use_everywhere(tables: Iterable[Table]) -> None:
    """Lets tables decide for every layer that has none of its own, each for its device; none: the cost model again.

    Of several for one device the measurements are joined. Choices that were kept have to be made anew: `rule.forget`.
    """
    _from_environment()  # first, so that it is what these replace
    _use_everywhere(tables)


def _use_everywhere(tables: Iterable[Table]) -> None:
    joined: dict[str, Table] = {}
    for table in tables:
        before = joined.get(table.machine.gpu)
        joined[table.machine.gpu] = table if before is None else before.with_entries(table.entries)
    if not joined:
        _process.clear()
    _process.update(joined)
    launch.cache_clear()


def names_table(kernel: str) -> bool:
    """Whether what settles a kernel is the name of a layer's table."""
    return kernel in _known


def table_of(kernel: str, gpu: str | None) -> Table | None:
    """The table that settles `kernel`: the one it names, or the process's for "auto"; None unless measured there.

    gpu: the name of the GPU that the problem is on, "" on the CPU, None on a device that no table is of.
    """
    _from_environment()
    table = _known.get(kernel) if kernel != "auto" else None if gpu is None else _process.get(gpu)
    return table if table is not None and table.machine.gpu == gpu else None


def process_tables() -> list[str]:
    """Names of the process's tables, for a checkpoint."""
    _from_environment()
    return sorted(table.name for table in _process.values())


@lru_cache(maxsize=4096)
def launch(op: str, gpu: str, like: Family, outputs: int) -> Config | None:
    """The launch that a table in use has for an op of a family on a GPU."""
    _from_environment()
    tables = [*reversed(_known.values()), *_process.values()]
    found = (table.launch(op, like, outputs) for table in tables if table.machine.gpu == gpu)
    return next((config for config in found if config), None)


def load(path: Path) -> list[Table]:
    """The table in a file, or those in a folder that were measured on this machine.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no table, or none was measured here.
    """
    if not path.is_dir():
        return [Table.load(path)]
    found = [Table.load(file, allow_other_machine=True) for file in sorted(path.glob("*.json"))]
    tables = [table for table in found if _measured_here(table)]
    if not tables:
        raise ValueError(f"expected a table of this machine in {path}, got {len(found)} of others, try spfde.tune")
    return tables


def _measured_here(table: Table) -> bool:
    if table.machine.gpu:
        return torch.cuda.is_available() and table.machine == Machine.of_gpu()
    return table.machine == Machine.of_cpu()


@lru_cache(maxsize=1)
def _from_environment() -> None:
    """Uses what SPFDE_TABLE names, once, when a choice is first made."""
    named = os.environ.get(VARIABLE)
    if not named:
        return
    try:
        tables = load(Path(named))
    except FileNotFoundError as error:
        raise ValueError(f"expected {VARIABLE} to name a file or a folder, got {named!r}, try unsetting it") from error
    _use_everywhere(tables)
