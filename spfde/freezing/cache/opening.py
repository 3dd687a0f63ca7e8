"""Where the rows of a store go: memory, the files that are there, or new ones, beside an older store or not."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spfde.freezing.cache import budget as budgets
from spfde.freezing.cache import files
from spfde.freezing.cache.files import OLDER, Files, Unusable
from spfde.freezing.cache.memory import Memory
from spfde.freezing.cache.row import Row
from spfde.freezing.cache.store import Store, cost

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def in_memory(row: Row, keys: int, budget: int | str) -> tuple[Memory, str]:
    """A store of at most `keys` rows in memory, and why it is as large as it is."""
    allowed = budgets.resolve(budget, None)
    room = _room(row, keys, allowed.size)
    return Memory(row, room), _described("memory", row, room, keys, allowed)


def on_disk(
    path: Path, identity: Mapping[str, Any], row: Row, keys: int, budget: int | str
) -> tuple[Memory | Files, str]:
    """The store in a directory if it is that of `identity`, or a new one in its place, and which of the two and why."""
    there = (path / files.HEADER).exists()
    identity = {**identity, **row.describe()}
    try:
        rows = Files.reopen(path, row, None if budget == "auto" else _room(row, keys, int(budget)), identity)
        return rows, f"went on with {np.count_nonzero(rows.holders):,} samples in {path}"
    except Unusable as error:
        files.erase(path)
        why = f"; what was there is gone: {error}" if there else ""
    allowed = budgets.resolve(budget, path)
    room = _room(row, keys, allowed.size)
    try:
        return Files.create(path, row, room, identity), _described(path, row, room, keys, allowed) + why
    except OSError as error:
        if error.errno not in FULL:
            raise
        files.erase(path)
        return Memory(row, 0), f"no store in {path}: {error.strerror}{why}"


def in_files(path: Path, keys: Collection[str], samples: int, variants: int) -> Store | None:
    """The store in a directory if it is that of one of `keys`, for as many samples and variants."""
    try:
        found = files.described(path)
        if found.get("key") not in keys:
            return None
        row = Row.of(found)
        identity = {"key": found["key"], "samples": samples, "variants": variants, **row.describe()}
        return Store(found["key"], samples, variants, row, Files.reopen(path, row, None, identity))
    except Unusable:
        return None


def set_aside(path: Path) -> None:
    """Moves the store in a directory to where the older one is kept, in place of what is there."""
    aside = path / OLDER
    aside.mkdir(exist_ok=True)
    files.erase(aside)
    files.move(path, aside)


def erase(path: Path) -> None:
    """Removes the stores in a directory."""
    discard_older(path)
    files.erase(path)


def discard_older(path: Path) -> None:
    """Removes the older store in a directory; other files stay."""
    aside = path / OLDER
    if aside.is_dir():
        files.erase(aside)
        if not os.listdir(aside):
            aside.rmdir()


def _room(row: Row, keys: int, size: int) -> int:
    return min(keys, size // cost(row))


def _described(where: object, row: Row, room: int, keys: int, budget: budgets.Budget) -> str:
    kind = row.describe()["stored"]
    return f"new store in {where}: {kind}, room for {room:,} of {keys:,} activations ({budget.reason})"
