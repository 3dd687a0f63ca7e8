"""The rows of a store on disk: numpy arrays, mapped to be read, and a JSON file that says what they are.

spfde-cache.json is there whenever an array is. Its identity, the key of the store and the form of its rows, starts
every checksum, so rows of another store are damaged rows. A row counts once its holder is written, after its data and
its checksum: a killed process leaves rows without holders, a power cut also holders whose checksums are wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from spfde.freezing.cache.row import Row

HEADER = "spfde-cache.json"
CODES, SCALES, HOLDERS, CHECKSUMS = ARRAYS = ("activations.npy", "scales.npy", "samples.npy", "checksums.npy")
OLDER = "older"  # directory of the store of a shorter front, inside of the cache's own
FORMAT = 1
ON_DISK = {torch.bfloat16: np.int16, torch.float16: np.float16, torch.float32: np.float32, torch.uint8: np.uint8}


class Unusable(ValueError):
    """The files are not those of the store that is wanted, or damaged; the message says which."""


class Files:
    """The rows of a store in the directory `path`, made or opened by `create` and `reopen`; see Memory for the fields.

    Written through files, read through the mapping: a full disk is then an error and no signal.
    """

    def __init__(self, path: Path, row: Row, identity: str, maps: Mapping[str, np.memmap], checked: bool) -> None:
        self.path = path
        self._start = zlib.crc32(identity.encode())
        self._maps = dict(maps)
        self._files = {name: os.open(path / name, os.O_RDWR) for name in maps}
        self._end = weakref.finalize(self, _close, tuple(self._files.values()))
        codes = torch.from_numpy(maps[CODES])
        self.codes = codes.view(row.stored) if row.stored == torch.bfloat16 else codes
        self.scales = torch.from_numpy(maps[SCALES]) if row.channels else None
        self.holders = maps[HOLDERS]
        self._checked = np.full(len(self.holders), checked)

    @classmethod
    def create(cls, path: Path, row: Row, capacity: int, header: Mapping[str, Any]) -> Files:
        """Makes empty files, in place of any that are there; what is not written takes no blocks of the disk."""
        erase(path)
        header = {"format": FORMAT, "capacity": capacity, **header}
        draft = path / f".{HEADER}.part"
        draft.write_text(json.dumps({**header, "checksum": _checksum(header)}, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, path / HEADER)
        maps = {name: open_memmap(path / name, "w+", dtype, shape) for name, (dtype, shape) in _arrays(row, capacity)}
        return cls(path, row, _identity(header), maps, checked=True)

    @classmethod
    def reopen(cls, path: Path, row: Row, capacity: int | None, header: Mapping[str, Any]) -> Files:
        """Opens what is there; each row is checked when it is first asked for. capacity: None takes any.

        Raises:
            Unusable: it is something else, or damaged.
        """
        header, found = {"format": FORMAT, **header}, _read(path / HEADER)
        for name, wanted in header.items():
            if found.get(name) != wanted:
                raise Unusable(f"expected {name} {wanted!r} in {path / HEADER}, got {found.get(name)!r}")
        there = found.get("capacity")
        if not isinstance(there, int) or there != (there if capacity is None else capacity):
            raise Unusable(f"expected room for {capacity} samples in {path / HEADER}, got {there}")
        maps = {name: _map(path / name, dtype, shape) for name, (dtype, shape) in _arrays(row, there)}
        return cls(path, row, _identity(found), maps, checked=False)

    def put(self, slots: Sequence[int], keys: Sequence[int], codes: Tensor, scales: Tensor | None) -> None:
        """Writes rows [n, *physical] into slots, one key each.

        Raises:
            OSError: the disk is full, or fails; the slots are empty then.
        """
        rows = _bytes(codes, len(slots))
        ranges = None if scales is None else _bytes(scales, len(slots))
        sums = [self._sum(key, rows[i], None if ranges is None else ranges[i]) for i, key in enumerate(keys)]
        self.forget([slot for slot in slots if self.holders[slot]])
        self._write(CODES, slots, rows)
        if ranges is not None:
            self._write(SCALES, slots, ranges)
        self._write(CHECKSUMS, slots, _bytes(np.array(sums, np.uint32), len(slots)))
        self._write(HOLDERS, slots, _bytes(np.array(keys, np.int64) + 1, len(slots)))
        self._checked[slots] = True

    def forget(self, slots: Sequence[int]) -> None:
        """Empties slots."""
        if not slots:
            return
        self._write(HOLDERS, slots, _bytes(np.zeros(len(slots), np.int64), len(slots)))

    def damaged(self, slots: Sequence[int]) -> list[int]:
        """Those of the slots whose content is not what was written."""
        unchecked = [] if self._checked[slots].all() else [slot for slot in slots if not self._checked[slot]]
        for slot in dict.fromkeys(unchecked):
            row, ranges = (
                None if name not in self._maps else _bytes(self._maps[name][slot : slot + 1], 1)[0]
                for name in (CODES, SCALES)
            )
            found = self._sum(int(self.holders[slot]) - 1, row, ranges)
            self._checked[slot] = found == self._maps[CHECKSUMS][slot]
        return [slot for slot in unchecked if not self._checked[slot]]

    def close(self) -> None:
        """Lets go of the files; what is in them stays."""
        self._end()
        self._files, self._maps = {}, {}
        self.codes, self.scales, self.holders = self.codes[:0].clone(), None, self.holders[:0].copy()

    def _sum(self, key: int, row: np.ndarray, ranges: np.ndarray | None) -> int:
        total = zlib.crc32(row, zlib.crc32(key.to_bytes(8, "little"), self._start))
        return total if ranges is None else zlib.crc32(ranges, total)

    def _write(self, name: str, slots: Sequence[int], rows: np.ndarray) -> None:
        """Rows uint8 [n, bytes] into slots of an array; neighbours in one call."""
        array, file, size = self._maps[name], self._files[name], rows.shape[1]
        for first, last in _runs(slots):
            left, place = memoryview(rows[first:last].reshape(-1)), array.offset + slots[first] * size
            while left:
                done = os.pwrite(file, left, place)
                left, place = left[done:], place + done


def erase(path: Path) -> None:
    """Removes a store, the header last; other files stay."""
    for name in (*ARRAYS, f".{HEADER}.part", HEADER):
        (path / name).unlink(missing_ok=True)


def move(path: Path, to: Path) -> None:
    """Moves a store to an empty directory; an open one stays open. The header is in both until the end."""
    shutil.copyfile(path / HEADER, to / HEADER)
    for name in ARRAYS:
        if (path / name).exists():
            os.replace(path / name, to / name)
    (path / HEADER).unlink()


def described(path: Path) -> dict[str, Any]:
    """What a directory says of the store in it: key, samples, variants and the form of its rows.

    Raises:
        Unusable: there is none, or its header is damaged.
    """
    return _read(path / HEADER)


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        os.close(handle)


def _arrays(row: Row, capacity: int) -> list[tuple[str, tuple[Any, tuple[int, ...]]]]:
    """Type and shape of every array, by file."""
    scales = [(SCALES, (np.float32, (capacity, 2, row.channels)))] if row.channels else []
    return [
        (CODES, (ON_DISK[row.stored], (capacity, *row.physical))),
        *scales,
        (CHECKSUMS, (np.uint32, (capacity,))),
        (HOLDERS, (np.int64, (capacity,))),
    ]


def _identity(header: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in sorted(header.items()) if name != "checksum"})


def _checksum(header: Mapping[str, Any]) -> int:
    return zlib.crc32(_identity(header).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unusable(f"expected {path}, got no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"expected JSON in {path}, got {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or found.get("checksum") != _checksum(found):
        raise Unusable(f"expected {path} as it was written, got another checksum")
    return found


def _map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    if not path.is_file():
        raise Unusable(f"expected a numpy array in {path}, got no such file")
    size = path.stat().st_size  # before it is mapped: numpy lengthens a file that is too short
    try:
        array = np.load(path, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise Unusable(f"expected a numpy array in {path}, got {' '.join(str(error).split())}") from error
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise Unusable(f"expected {np.dtype(dtype)} {list(shape)} in {path}, got {got}")
    wanted = array.offset + prod(shape) * array.itemsize
    if size != wanted:
        raise Unusable(f"expected {wanted} bytes in {path}, got {size}")
    return array


def _bytes(values: Tensor | np.ndarray, count: int) -> np.ndarray:
    """The memory of `count` > 0 contiguous values as uint8 [count, bytes of one]."""
    if isinstance(values, Tensor):
        values = values.view(torch.int16 if values.dtype == torch.bfloat16 else values.dtype).numpy()
    return np.ascontiguousarray(values).reshape(count, -1).view(np.uint8)


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Spans [first, last) of positions whose slots follow one another."""
    first = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            if slots:
                yield first, i
            first = i
