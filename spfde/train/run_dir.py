"""The run directory: what is in it, writes that never leave half a file, and one run in it at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spfde._files import PARTIAL, sync_directory, write_whole
from spfde.freezing.cache.files import erase

FILES = ("metrics.jsonl", "recipe.toml", "run.json", "result.json", "layers.json", "rounds.json", "sieve.json")
METRICS, RECIPE, RUN, RESULT, LAYERS, ROUNDS, SIEVE = FILES
CHECKPOINTS = "checkpoints"
CACHE = "cache"
LOCK = ".lock"
REFUSED = ".refused"
_CHECKPOINT = re.compile(r"epoch-([0-9]+)(?:-step-([0-9]+))?\.pt")


class WriteError(OSError):
    """A file of a run cannot be written (a full disk, a directory that is gone); what was kept before stands."""


def checkpoint_path(out: Path, epoch: int, step: int | None = None) -> Path:
    """Return where the state after an epoch (from 0) is kept, or after `step` of its steps."""
    within = "" if step is None else f"-step-{step:06d}"
    return out / CHECKPOINTS / f"epoch-{epoch:03d}{within}.pt"


def cache_path(out: str | os.PathLike[str]) -> Path:
    """Return where a run keeps what its frozen front returns."""
    return Path(out) / CACHE


def discard_cache(out: str | os.PathLike[str] | None) -> None:
    """Remove that, if there is a run directory."""
    if out is None or not cache_path(out).is_dir():
        return
    erase(cache_path(out))
    (cache_path(out) / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # whoever put something else there
        cache_path(out).rmdir()


def is_epoch(path: Path) -> bool:
    """Tell whether a checkpoint is of a whole epoch."""
    return "-step-" not in path.name


def checkpoints(out: Path) -> list[Path]:
    """List the checkpoints of a run directory, the oldest first."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in (out / CHECKPOINTS).glob("epoch-*.pt")}
    places = {path: (int(match[1]), float(match[2] or "inf")) for path, match in found.items() if match}
    return sorted(places, key=places.__getitem__)


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that a crash leaves what was there or the new one, never a part of one.

    Raises:
        WriteError: the file cannot be written; the old one stands.
    """
    with _told(path):
        write_whole(path, write)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer turns some of the system's errors into its own.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause)
        raise WriteError(
            f"expected to write {path}, got {reason}; what was kept before stands, try {_remedy(cause)}, then resume"
        ) from error


def _remedy(error: BaseException) -> str:
    # torch's own errors have no number: its writer fails on full disks.
    full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "freeing space" if full else "a directory that can be written"


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
    """Append one JSON line and hand it to the system.

    Raises:
        WriteError: it cannot be written; part of the line may be.
    """
    with _told(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def require_space(path: Path, size: int) -> None:
    """Check that a directory takes a file of `size` bytes: quotas and file size limits count as well.

    Raises:
        ValueError: it does not.
    """
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    except OSError as error:
        raise ValueError(
            f"expected room for a checkpoint of {size / 2**20:.1f} MiB in {path}, got {error.strerror}, try"
            f" {_remedy(error)}, or another out"
        ) from error


def check_directory(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Make a run directory and check that it can be used, before anything is computed.

    Raises:
        ValueError: it cannot be written, holds a comparison, or a run that nobody asked to resume or to overwrite,
            or no checkpoint to resume.
    """
    if holds_comparison(path):
        raise ValueError(
            f"expected a run directory, got {path}, which holds a comparison of runs, try one in it, or another out"
        )
    found = checkpoints(path)
    if resume and not holds_run(path):
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
        for directory in (path.parent, path, path / CHECKPOINTS):
            sync_directory(directory)
    except OSError as error:
        raise ValueError(
            f"expected a run directory that can be written, got {path} ({error.strerror}), try another out"
        ) from error


def holds_comparison(path: Path) -> bool:
    """Tell whether a directory is that of several runs, each in a folder of its own."""
    try:
        return "compare" in json.loads((path / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def begun(path: Path) -> bool:
    """Tell whether a run began in a directory that ended before its first checkpoint."""
    return (path / RUN).exists() and not (path / METRICS).exists() and not checkpoints(path)


def holds_run(path: Path) -> bool:
    """Tell whether a directory has a run that can be resumed."""
    return begun(path) or bool(checkpoints(path))


def clear(path: Path) -> None:
    """Remove a run's files, and what killed processes left half-written."""
    refused = (path / CHECKPOINTS).glob(f"*{REFUSED}")
    for file in (*checkpoints(path), *refused, *(path / name for name in FILES)):
        file.unlink(missing_ok=True)
    discard_cache(path)
    sweep(path)


def sweep(path: Path) -> None:
    """Remove the half-written files that killed processes left in a run directory."""
    for left in (*path.glob(f".*{PARTIAL}"), *(path / CHECKPOINTS).glob(f".*{PARTIAL}")):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
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
