"""The file of a table: {"machine": {...}, "entries": [{problem..., "seconds": {kernel: s}, "launches": [...]}]}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from spfde._files import write_json
from spfde._machine import Machine
from spfde.kernels import registry
from spfde.kernels.dispatch.measurement import OPS, KernelMeasurement, Launch
from spfde.kernels.gpu import Config
from spfde.kernels.problem import EMPTY, Problem
from spfde.sparse.kernel_index import Window

DTYPES = ("float32", "float16", "bfloat16")

Content = tuple[Machine, tuple[KernelMeasurement, ...]]


def digest(machine: Machine, entries: Sequence[KernelMeasurement]) -> str:
    """Twelve hexadecimal digits that change with any measurement."""
    return sha256(json.dumps(_to_json(machine, entries)).encode()).hexdigest()[:12]


def write(path: Path, machine: Machine, entries: Sequence[KernelMeasurement]) -> None:
    """Writes a table whole or not at all: a tuner that is stopped leaves what it had."""
    write_json(path, _to_json(machine, entries))


def read(path: Path) -> Content:
    """Reads what `write` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no table; names the file, the entry and what is wrong with it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(_numbered(i, entry) for i, entry in enumerate(values["entries"]))
        return Machine.from_dict(values["machine"]), entries
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"expected a table written by Table.save in {path}, got {type(error).__name__}: {error}, try spfde.tune"
        ) from error


def _to_json(machine: Machine, entries: Sequence[KernelMeasurement]) -> dict[str, Any]:
    return {"machine": machine.to_dict(), "entries": [_entry_to_json(entry) for entry in entries]}


def _entry_to_json(entry: KernelMeasurement) -> dict[str, Any]:
    fields = {**entry.problem._asdict(), "window": entry.problem.window._asdict(), "seconds": dict(entry.seconds)}
    # Left out where they say nothing: tables of a CPU keep the digest that they had before there were others.
    if entry.problem.dtype == "float32":
        del fields["dtype"]
    if entry.launches:
        fields["launches"] = [{"op": op, "outputs": n, **config._asdict()} for op, n, config in entry.launches]
    return fields


def _numbered(index: int, values: Any) -> KernelMeasurement:
    try:
        return _entry(dict(values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"entries[{index}]: {type(error).__name__}: {error}") from error


def _entry(values: dict[str, Any]) -> KernelMeasurement:
    seconds = values.pop("seconds")
    if "dense" not in seconds or len(seconds) < 2 or not seconds.keys() <= {*registry.names()}:
        raise ValueError(f"expected seconds of 'dense' and other kernels, got those of {sorted(seconds)}")
    for kernel, value in seconds.items():
        if not isinstance(value, float) or not isfinite(value) or value <= 0:
            raise ValueError(f"expected positive seconds of {kernel!r}, got {value!r}")
    dtype = values.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    launches = tuple(_launch(**launch) for launch in values.pop("launches", ()))
    window = Window(**{name: _ints(value) for name, value in values.pop("window").items()})
    problem = Problem(window=window, dtype=dtype, **{name: _ints(value) for name, value in values.items()})
    if not 0 <= problem.bucket <= EMPTY or len(problem.shape) not in (2, 4):
        raise ValueError(f"expected a linear or convolution problem, got {problem}")
    return KernelMeasurement(problem, tuple(seconds.items()), launches)


def _launch(op: str, outputs: int, **config: int) -> Launch:
    if op not in OPS:
        raise ValueError(f"expected a launch of {', '.join(OPS)}, got one of {op!r}")
    for name, value in {"outputs": outputs, **config}.items():
        if _ints(value) < 1:
            raise ValueError(f"expected {name} of a launch to be positive, got {value}")
        if name not in ("outputs", "stages") and value & (value - 1):  # Triton's shapes and warps
            raise ValueError(f"expected {name} of a launch to be a power of two, got {value}")
    return Launch(op, outputs, Config(**config))


def _ints(value: Any) -> Any:
    """A whole number, or a list of them as a tuple."""
    if isinstance(value, list):
        return tuple(_ints(item) for item in value)
    if type(value) is not int:
        raise TypeError(f"expected whole numbers, got {value!r}")
    return value
