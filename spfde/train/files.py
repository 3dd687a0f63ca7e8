"""The run directory: what is in it, and writes that never leave half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

FILES = ("checkpoint.pt", "metrics.jsonl", "run.json", "result.json", "layers.json")
CHECKPOINT, METRICS, RUN, RESULT, LAYERS = FILES


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part of one.

    Raises:
        OSError: the file cannot be written; the old one stands.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    # The rename itself is durable only once the directory is; some systems cannot open one.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as JSON lines, atomically."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(path, lambda file: file.write(text.encode()))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line and hand it to the system."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def check_directory(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Make a run directory and check that it can be used, before anything is computed.

    Raises:
        ValueError: it cannot be written, holds a run that nobody asked to resume or to overwrite, or holds no
            checkpoint to resume.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"expected a run directory that can be written, got {path} ({error.strerror}), try another out"
        ) from error
    if resume and not (path / CHECKPOINT).exists():
        raise ValueError(f"expected a checkpoint to resume in {path}, got none, try without resume")
    kept = [name for name in (CHECKPOINT, RESULT) if (path / name).exists()]
    if kept and not (resume or overwrite):
        raise ValueError(
            f"expected a run directory without a run, got {path} with {' and '.join(kept)},"
            " try resume, overwrite or another out"
        )


def clear(path: Path) -> None:
    """Remove a run's files."""
    for name in FILES:
        (path / name).unlink(missing_ok=True)
