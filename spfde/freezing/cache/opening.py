"""Where the rows of a store go: memory, the files that are there, or new ones."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spfde.freezing.cache import budget as budgets
from spfde.freezing.cache import files
from spfde.freezing.cache.files import Files, Unusable
from spfde.freezing.cache.memory import Memory
from spfde.freezing.cache.row import Row

INDEX = 256  # bytes of memory, or less, that finding a row takes beside the row itself
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


def _room(row: Row, keys: int, size: int) -> int:
    return min(keys, size // (row.bytes + INDEX))


def _described(where: object, row: Row, room: int, keys: int, budget: budgets.Budget) -> str:
    kind = row.describe()["stored"]
    return f"new store in {where}: {kind}, room for {room:,} of {keys:,} activations ({budget.reason})"
