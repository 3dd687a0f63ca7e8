"""One file per epoch that holds all a run needs to go on: tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spfde.train import files
from spfde.train.recipe import Recipe, differences

FORMAT, VERSION = "spfde.train", 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save(out: Path, epoch: int, state: Mapping[str, Any], keep: int | None = None) -> None:
    """Write the checkpoint of an epoch atomically, then drop all but the `keep` newest (None: keep all).

    `torch.load(weights_only=True)` reads it back.

    Raises:
        CheckpointError: it cannot be written (a full disk); those before stand.
    """
    path = files.checkpoint_path(out, epoch)
    whole = {"format": FORMAT, "version": VERSION, **state}
    try:
        files.write_atomically(path, lambda file: torch.save(whole, file))
        for old in files.checkpoints(out)[: -keep if keep else 0]:
            old.unlink()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"expected to write {path}, got {error}, try freeing space and then resume: the last checkpoint stands"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, cut short, or none of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a checkpoint at {path}, got no file, try without resume") from error
    except Exception as error:  # torch reads foreign bytes as a pickle: any error may come of that
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"expected a complete spfde checkpoint at {path}, got a file that cannot be read ({reason}),"
            " try removing it to go on from the epoch before, or train without resume"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint that spfde train wrote at {path}, got another kind of file,"
            " try removing it to go on from the epoch before"
        )
    if state["version"] != VERSION:
        raise CheckpointError(
            f"expected a version {VERSION} checkpoint at {path}, got version {state['version']},"
            " try the spfde release that wrote it"
        )
    return state


def require_same_recipe(state: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Check that a checkpoint belongs to a recipe.

    Raises:
        CheckpointError: a field differs; all that do are named.
    """
    changed = differences(state["recipe"], recipe)
    if not changed:
        return
    why = ""
    if any(entry.startswith("epochs:") for entry in changed):
        why = "; other epochs need a new run, since the whole learning-rate cosine is spread over them"
    raise CheckpointError(
        f"expected the recipe of {path}, got another one ({'; '.join(changed)}){why},"
        " try the kept values, or another out"
    )


def require_same_samples(state: Mapping[str, Any], samples: int, path: Path) -> None:
    """Check that a checkpoint belongs to a training set of this many samples.

    Raises:
        CheckpointError: it had another number.
    """
    if state["samples"] != samples:
        raise CheckpointError(
            f"expected the {state['samples']} training samples of {path}, got {samples}, try the same data set"
        )
