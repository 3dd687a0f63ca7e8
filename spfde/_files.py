"""Files of values: written whole or not at all, and refused before the work that would fill them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  # ends the name of a file that is being written


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that a crash leaves what was there or the new one, never a part of one.

    Raises:
        OSError: it cannot be written, or what `write` raises; the old one stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all, and makes its folder."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode()))


def check_writable(path: Path) -> None:
    """Makes the folder of a file.

    Raises:
        OSError: nothing can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"expected a file to write, got the folder {path}, try {path / 'out.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    draft.touch()
    draft.unlink()


def sync_directory(path: Path) -> None:
    """Makes what was renamed or made in a directory durable, on systems that can open one."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
