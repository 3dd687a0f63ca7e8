"""One run at a time in a directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run directory; the system lets go of it when the process ends, however it ends.

    A record lock: loader processes do not inherit it, so a killed run's last worker keeps nobody out.

    Raises:
        ValueError: another process holds it.
    """
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks: there a run goes without.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(handle, 32).decode(errors="replace").strip()
                raise ValueError(
                    f"expected a run directory that no other run uses, got {out}, in use by process {holder or '?'},"
                    " try waiting for it, or another out"
                ) from error
        with contextlib.suppress(OSError):  # only for the message above; a full disk is told with its size later
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
