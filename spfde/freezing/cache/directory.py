"""The directory of a cache: one that holds nothing else, and one cache in it at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from spfde.freezing.cache.files import HEADER, OLDER

LOCK = ".lock"
_in_use: set[Path] = set()  # by this process, to which a record lock says nothing


def claim(path: Path) -> int:
    """Takes a directory, made if need be, for one cache; the handle that `release` wants.

    A record lock: loader processes do not inherit it, and the system lets go of it when the process ends.

    Raises:
        ValueError: it cannot be written, holds something else, or another cache uses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
        others = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK)
        older = (
            others == [OLDER] and (path / OLDER / HEADER).exists()
        )  # of a process that was killed between two stores
        if others and HEADER not in others and not older:
            raise ValueError(
                f"expected an empty directory or that of a cache, got {path} with {others[0]}, try one of its own"
            )
        if path in _in_use:
            raise _taken(path, os.getpid())
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"expected a directory that can be written, got {path} ({error.strerror}), try another path"
        ) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: there a cache goes without.
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise _taken(path, holder or "?") from error
    with contextlib.suppress(OSError):  # only for the message above
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
    _in_use.add(path)
    return handle


def release(path: Path, handle: int) -> None:
    """Gives the directory back."""
    _in_use.discard(path.resolve())
    os.close(handle)


def _taken(path: Path, holder: object) -> ValueError:
    return ValueError(
        f"expected a directory that no other cache uses, got {path}, in use by process {holder},"
        " try a path for each rank and each model"
    )
