"""Files that hold all a run needs to go on, after an epoch or within one: tensors and plain values only."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from spfde.train import run_dir
from spfde.train.device import Layout
from spfde.train.recipe import Recipe, differences
from spfde.train.stats import Epoch, EpochProgress

FORMAT, VERSION = "spfde.train", 3
KEPT_WITHIN = 2  # checkpoints within an epoch: one to go on from should the newest be damaged


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


@contextmanager
def belongs_to(part: str, remedy: str) -> Iterator[None]:
    """Raise CheckpointError, with what to try, where the state of a part of a run does not fit that of this one."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)
        got = f"another one ({shorten(what, 400, placeholder=' ...')})"  # torch lists every key
        raise CheckpointError(f"expected the checkpoint of this {part}, got {got}, try {remedy}") from error


@dataclass(frozen=True)
class Kept:
    """A checkpoint that was read: the run it belongs to, the epochs behind, the one under way, the session's state."""

    path: Path
    recipe: Mapping[str, Any]
    samples: int
    layout: Layout
    machine: Mapping[str, Any]
    history: tuple[Epoch, ...]
    underway: EpochProgress | None
    session: Mapping[str, Any]

    @property
    def seconds(self) -> Sequence[float] | None:
        """What a freezer had measured to plan by, None where none had; CheckpointError where that cannot be told."""
        with belongs_to("run's levers", "an older checkpoint or a new run"):
            states = (each["state"] for each in self.session.get("levers", ()))
            return next((state["seconds"] for state in states if state.get("seconds")), None)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; `torch.load(weights_only=True)` reads it back.

    Raises:
        WriteError: it cannot be written (a full disk); those before stand.
    """
    whole = {"format": FORMAT, "version": VERSION, **state}
    run_dir.write_atomically(path, lambda file: torch.save(whole, file))


def prune(out: Path, keep: int | None = None) -> None:
    """Drop all but the `keep` newest epochs (None: keep all), and within epochs all but the last of one under way."""
    found = run_dir.checkpoints(out)
    epochs = [path for path in found if run_dir.is_epoch(path)]
    within = [path for path in found if not run_dir.is_epoch(path)]
    if within and not run_dir.is_epoch(found[-1]):
        del within[-KEPT_WITHIN:]
    for old in (*epochs[: -keep if keep else 0], *within):
        old.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, cut short, altered, or none of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not look at the checksums: a flipped bit would become a weight.
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a checkpoint at {path}, got no file, try without resume") from error
    except MemoryError:
        raise
    except Exception as error:  # torch reads foreign bytes as a pickle: any error may come of that
        reason = str(error).split("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to trust the file
            reason = "it is more than tensors and plain values"
        raise CheckpointError(
            f"expected a complete spfde checkpoint at {path}, got a file that cannot be read ({reason}),"
            " try an older checkpoint or a new run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint that spfde train wrote at {path}, got another kind of file,"
            " try an older checkpoint or a new run"
        )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"expected a version {VERSION} checkpoint at {path}, got version {state.get('version')!r},"
            " try the spfde release that wrote it"
        )
    return state


def read(path: Path) -> Kept:
    """Read a checkpoint and check that it has what a run goes on from.

    Raises:
        CheckpointError: it cannot be read, or lacks something.
    """
    state = load(path)
    try:
        history = tuple(map(Epoch.from_dict, state["history"]))
        underway = None if state["underway"] is None else EpochProgress.from_dict(state["underway"])
        kept = Kept(
            path,
            dict(state["recipe"]),
            int(state["samples"]),
            Layout(**state["layout"]),
            dict(state["machine"]),
            history,
            underway,
            dict(state["session"]),
        )
        behind = [item.epoch for item in history] + ([underway.epoch] if underway else [])
        if not behind or behind != list(range(len(behind))):
            raise ValueError(f"epochs {behind}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"expected a whole run's state at {path}, got one with a fault ({type(error).__name__}: {error}),"
            " try an older checkpoint or a new run"
        ) from error
    return kept


def newest(out: Path) -> tuple[Kept, dict[Path, CheckpointError]]:
    """Read the newest checkpoint that can be used; and why newer ones, from the newest on, cannot.

    Raises:
        CheckpointError: none can be used.
    """
    refused: dict[Path, CheckpointError] = {}
    for path in reversed(run_dir.checkpoints(out)):
        try:
            return read(path), refused
        except CheckpointError as error:
            refused[path] = error
    first = next(iter(refused.values()))
    others = f"; {len(refused) - 1} older ones cannot be used either" if len(refused) > 1 else ""
    raise CheckpointError(f"{first}{others}") from first


def set_aside(refused: Mapping[Path, CheckpointError], used: Path) -> list[str]:
    """Rename what cannot be used, so that it is neither read nor counted again; return what there is to tell."""
    return [
        f"{error}; set aside as {path.replace(path.with_name(path.name + run_dir.REFUSED)).name}, going on from {used}"
        for path, error in refused.items()
    ]


def require_same_recipe(kept: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Check that the recipe of a checkpoint, or of another file of its run, is this one.

    Raises:
        CheckpointError: a field differs; all that do are named.
    """
    changed = differences(kept, recipe)
    if not changed:
        return
    why = ""
    if any(entry.startswith("epochs:") for entry in changed):
        why = "; other epochs need a new run, since the whole learning-rate cosine is spread over them"
    raise CheckpointError(
        f"expected the recipe of {path}, got another one ({'; '.join(changed)}){why},"
        " try the kept values, or another out"
    )


def require_same_samples(kept: int, samples: int, path: Path) -> None:
    """Check that a checkpoint belongs to a training set of this many samples.

    Raises:
        CheckpointError: it had another number.
    """
    if kept != samples:
        raise CheckpointError(f"expected the {kept} training samples of {path}, got {samples}, try the same data set")
