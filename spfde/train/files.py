"""The run directory: what is in it, and writes that never leave half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

FILES = ("metrics.jsonl", "recipe.toml", "run.json", "result.json", "layers.json")
METRICS, RECIPE, RUN, RESULT, LAYERS = FILES
CHECKPOINTS = "checkpoints"
PARTIAL = ".partial"


def checkpoint_path(out: Path, epoch: int) -> Path:
    """Return where the state after an epoch (from 0) is kept."""
    return out / CHECKPOINTS / f"epoch-{epoch:03d}.pt"


def checkpoints(out: Path) -> list[Path]:
    """List the checkpoints of a run directory, the oldest epoch first."""
    found = {path.stem.removeprefix("epoch-"): path for path in (out / CHECKPOINTS).glob("epoch-*.pt")}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that a crash leaves what was there or the new one, never a part of one.

    Raises:
        OSError: the file cannot be written; the old one stands.
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
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


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
    found = checkpoints(path)
    if resume and not found:
        raise ValueError(f"expected a checkpoint to resume in {path}, got none, try without resume")
    kept = [file.relative_to(path) for file in (*found[-1:], path / RESULT) if file.exists()]
    if kept and not (resume or overwrite):
        raise ValueError(
            f"expected a run directory without a run, got {path} with {' and '.join(map(str, kept))},"
            " try resume, overwrite or another out"
        )
    try:
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for directory in (path, path / CHECKPOINTS):
            tempfile.TemporaryFile(dir=directory).close()
            _sync_directory(directory)
    except OSError as error:
        raise ValueError(
            f"expected a run directory that can be written, got {path} ({error.strerror}), try another out"
        ) from error


def clear(path: Path) -> None:
    """Remove a run's files, and what killed processes left half-written."""
    for file in (*checkpoints(path), *(path / name for name in FILES)):
        file.unlink(missing_ok=True)
    sweep(path)


def sweep(path: Path) -> None:
    """Remove the half-written files that killed processes left in a run directory."""
    for left in (*path.glob(f".*{PARTIAL}"), *(path / CHECKPOINTS).glob(f".*{PARTIAL}")):
        left.unlink(missing_ok=True)
