"""What was measured on GPUs: the fastest launches, and up to which density the kernels beat the masked dense product.

One JSON file for a GPU: those in tables/ beside this file, then what SPFDE_GPU_TABLE names, then what `add` was given;
of entries for the same problem the last wins. Read when a GPU is first asked about. No triton is imported here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spfde.kernels.dispatch.problem import Problem
from spfde.kernels.triton.config import Config, Gpu
from spfde.sparse.plan import Window

SHIPPED = Path(__file__).with_name("tables")
VARIABLE = "SPFDE_GPU_TABLE"
OPS = ("forward", "input_grad", "weight_grad")
LAYOUT = re.compile(r"linear|conv2d [1-9]\d*x[1-9]\d*/[1-9]\d*x[1-9]\d*")
DTYPES = ("float32", "float16", "bfloat16")  # float32: as TF32
VERSIONS = ("spfde", "torch", "triton")

Launches = Mapping[int, Config]  # by outputs of a program: block rows that share one change what is fastest


class Key(NamedTuple):
    """What was measured: on which GPU, kind of layer (see `layout_of`), block, precision and shape.

    bucket: batch x positions, rows and columns in halvings (see `bucket_of`).
    """

    gpu: str
    layout: str
    block: tuple[int, int]
    dtype: str
    bucket: tuple[int, int, int]


class Measured(NamedTuple):
    """The fastest launches, and the density up to which forward + backward beat the masked dense product."""

    forward: Launches
    input_grad: Launches
    weight_grad: Launches
    break_even: float


@dataclass(frozen=True)
class GpuTable:
    """The measurements of one GPU. about: versions, date and command they were made with."""

    gpu: str
    about: Mapping[str, str]
    entries: Mapping[Key, Measured] = field(default_factory=dict)

    def with_entry(self, key: Key, measured: Measured) -> GpuTable:
        """This table and one more measurement."""
        return GpuTable(self.gpu, self.about, {**self.entries, key: measured})

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        entries = [
            {**key._asdict(), **{op: {str(outputs): how for outputs, how in getattr(found, op).items()} for op in OPS},
             "break_even": found.break_even}
            for key, found in self.entries.items()
        ]  # fmt: skip
        for entry in entries:
            del entry["gpu"]
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        draft.write_text(json.dumps({"gpu": self.gpu, "about": dict(self.about), "entries": entries}, indent=1) + "\n")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> GpuTable:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such table; names the file and the field.
        """
        try:
            return _table(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}, try measuring again with spfde bench --tune") from error


def bucket_of(positions: int, rows: int, cols: int) -> tuple[int, int, int]:
    """Sizes that share an entry of the table: within a halving of each other."""
    return positions.bit_length(), rows.bit_length(), cols.bit_length()


def key_of(gpu: Gpu, problem: Problem, dtype: torch.dtype) -> Key:
    """The key of a problem."""
    layout = layout_of(problem.window)
    return _key(gpu.name, layout, problem.block, dtype, problem.positions, problem.shape[0], prod(problem.shape[1:]))


@lru_cache(maxsize=256)
def layout_of(window: Window) -> str:
    """The kind of a layer: "linear", or "conv2d 3x3/2x2" by kernel and stride."""
    kernel, stride = ("x".join(map(str, sides)) for sides in (window.kernel, window.stride))
    return "linear" if window.linear else f"conv2d {kernel}/{stride}"


def _key(
    gpu: str, layout: str, block: tuple[int, int], dtype: torch.dtype, positions: int, rows: int, cols: int
) -> Key:
    return Key(gpu, layout, block, str(dtype).removeprefix("torch."), bucket_of(positions, rows, cols))


# ---- all tables ------------------------------------------------------------------------------------------------------

_ADDED: list[GpuTable] = []


@lru_cache(maxsize=1)
def known() -> Mapping[Key, Measured]:
    """Every measurement there is.

    Raises:
        ValueError: a file is no table, or SPFDE_GPU_TABLE names nothing that exists.
    """
    named = os.environ.get(VARIABLE)
    try:
        tables = [*_folder(SHIPPED), *(_read(Path(named)) if named else ()), *_ADDED]
    except FileNotFoundError as error:
        raise ValueError(f"expected {VARIABLE} to name a file or a folder, got {named!r}, try unsetting it") from error
    return {key: measured for table in tables for key, measured in table.entries.items()}


def add(path: Path) -> None:
    """Adds a file, or those of a folder; their entries win over what was known.

    Raises:
        OSError: it cannot be read.
        ValueError: a file is no table.
    """
    _ADDED.extend(_read(path))
    forget()


def forget() -> None:
    """Lets the files be read again."""
    known.cache_clear()
    _launch.cache_clear()


def _read(path: Path) -> list[GpuTable]:
    return _folder(path) if path.is_dir() else [GpuTable.load(path)]


def _folder(path: Path) -> list[GpuTable]:
    return [GpuTable.load(file) for file in sorted(path.glob("*.json"))]


# ---- launches --------------------------------------------------------------------------------------------------------

# Not of a thread: autograd runs backward passes in its own.
_ON_TRIAL: dict[str, Config] = {}
_ASKED: set[str] = set()


def launch_of(
    op: str, gpu: Gpu, layout: str, block: tuple[int, int], outputs: int, dtype: torch.dtype, positions: int,
    shape: tuple[int, int], exact: bool,
) -> Config | None:  # fmt: skip
    """The launch of a kernel that is on trial, or was measured for its problem; None: `config` has the computed one.

    op: one of OPS. block, shape: of the weight as stored (R, C) and [rows, cols], whatever the direction. outputs:
    columns of the result of a program. exact: float32 that is not TF32, for which nothing is measured.
    """
    if op in _ON_TRIAL:
        _ASKED.add(op)
        return _ON_TRIAL[op]
    return None if exact else _launch(op, gpu.name, layout, block, outputs, dtype, positions, shape)


@lru_cache(maxsize=4096)
def _launch(
    op: str, gpu: str, layout: str, block: tuple[int, int], outputs: int, dtype: torch.dtype, positions: int,
    shape: tuple[int, int],
) -> Config | None:  # fmt: skip
    measured = known().get(_key(gpu, layout, block, dtype, positions, *shape))
    return None if measured is None else getattr(measured, op).get(outputs)


@contextmanager
def trying(launches: Mapping[str, Config]) -> Iterator[None]:
    """Lets these launches, by op, be used whatever else is known.

    Raises:
        RuntimeError: at the end, if a kernel was not launched so: its time would be that of another launch.
    """
    before = dict(_ON_TRIAL)
    _ON_TRIAL.update(launches)
    _ASKED.clear()
    try:
        yield
        if unused := [op for op in launches if op not in _ASKED]:
            raise RuntimeError(f"expected a kernel to take the launch of {', '.join(unused)}, got none that did")
    finally:
        _ON_TRIAL.clear()
        _ON_TRIAL.update(before)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _table(values: Any) -> GpuTable:
    fields = _fields(values, ("gpu", "about", "entries"), "the file")
    gpu = _one(fields["gpu"], isinstance(fields["gpu"], str), "gpu", "a name")
    about = fields["about"]
    versions = isinstance(about, dict) and {*VERSIONS} <= {*about} and all(isinstance(v, str) for v in about.values())
    _one(about, versions, "about", f"the versions of {', '.join(VERSIONS)}, as text")
    _one(fields["entries"], isinstance(fields["entries"], list), "entries", "a list")
    return GpuTable(gpu, about, dict(_entry(gpu, i, entry) for i, entry in enumerate(fields["entries"])))


def _entry(gpu: str, index: int, values: Any) -> tuple[Key, Measured]:
    at = f"entries[{index}]"
    fields = _fields(values, (*Key._fields[1:], *Measured._fields), at)
    known = isinstance(fields["layout"], str) and LAYOUT.fullmatch(fields["layout"])
    _one(fields["layout"], known, f"{at}.layout", "'linear' or 'conv2d KHxKW/SHxSW'")
    _one(fields["dtype"], fields["dtype"] in DTYPES, f"{at}.dtype", f"one of {', '.join(DTYPES)}")
    block = _counts(fields["block"], 2, f"{at}.block")
    key = Key(gpu, fields["layout"], block, fields["dtype"], _counts(fields["bucket"], 3, f"{at}.bucket"))
    density = fields["break_even"]
    number = isinstance(density, int | float) and not isinstance(density, bool) and 0 <= density <= 1
    _one(density, number, f"{at}.break_even", "a density in [0, 1]")
    return key, Measured(*(_launches(fields[op], f"{at}.{op}") for op in OPS), float(density))


def _launches(values: Any, at: str) -> Launches:
    named = isinstance(values, dict) and all(outputs.isdecimal() and int(outputs) for outputs in values)
    _one(values, named, at, "launches by outputs of a program")
    return {int(outputs): _launch_from(how, f"{at}.{outputs}") for outputs, how in values.items()}


def _launch_from(values: Any, at: str) -> Config:
    how = Config(*_counts(values, len(Config._fields), at))
    powers = all(value & (value - 1) == 0 for value in (how.tokens, how.depth, how.warps))
    return _one(how, powers, at, "tokens, depth and warps that are powers of two")


def _counts(values: Any, length: int, at: str) -> tuple[int, ...]:
    fine = isinstance(values, list) and len(values) == length and all(type(v) is int and v > 0 for v in values)
    return tuple(_one(values, fine, at, f"{length} positive whole numbers"))


def _fields(values: Any, names: tuple[str, ...], at: str) -> dict[str, Any]:
    fine = isinstance(values, dict) and values.keys() == {*names}
    got = ", ".join(values) if isinstance(values, dict) else values
    return values if fine else _one(got, False, at, f"the fields {', '.join(names)}")


def _one(value: Any, fine: bool, at: str, what: str) -> Any:
    if not fine:
        raise ValueError(f"expected {at} to be {what}, got {value!r}")
    return value
