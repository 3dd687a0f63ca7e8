"""Files of measurements that a report draws beside runs: of `spfde bench`, `spfde plan` and `spfde profile`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spfde import bench, planning
from spfde._schema import WRITER, build
from spfde.bench.record import FORMAT as BENCH
from spfde.planning.values import FORMAT as PLAN


@dataclass(frozen=True)
class ProfileFile:
    """What `spfde profile --out` wrote: seconds of a step by kind of work, by variant."""

    kinds: Mapping[str, Mapping[str, float]]
    batch: int
    threads: int
    model: Any


Measured = bench.Record | planning.Plan | ProfileFile


def read_file(path: Path) -> Measured:
    """Reads one of them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of them, of another version, or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected a file of bench, plan or profile in {path}, got no JSON ({error})") from error
    kind = values.get("format") if isinstance(values, dict) else None
    if kind == BENCH:
        return bench.load(path)
    if kind == PLAN:
        return planning.load(path)
    if isinstance(values, dict) and "kinds" in values:
        return build(ProfileFile, {"model": None, **values}, path)
    raise ValueError(f"expected a file of bench, plan or profile in {path}, got another one, {WRITER}")
