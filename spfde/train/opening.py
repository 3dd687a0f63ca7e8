"""How a run starts: built anew, or taken up where its checkpoints left it."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from spfde.train import checkpoint, files, record
from spfde.train.metrics import Epoch, Underway
from spfde.train.optimizer import Factory
from spfde.train.recipe import Recipe
from spfde.train.session import Session, build


def opened(
    recipe: Recipe,
    out: Path | None,
    model: nn.Module | None,
    train_set: Dataset | None,
    test_set: Dataset | None,
    optimizer: Factory | None,
    resume: bool,
) -> tuple[Session, list[Epoch], Underway | None, list[str]]:
    """Build a run, or take it up: the session, the epochs behind, the one under way, and what is to be told.

    Raises:
        ValueError: an option does not fit the data or the network.
        CheckpointError: no checkpoint to resume can be read, or it belongs to another run.
        WriteError: there is no space for a checkpoint.
    """
    if out is None:
        return build(recipe, model, train_set, test_set, optimizer=optimizer), [], None, []
    if not resume or files.begun(out):
        if resume:
            record.require_begun(out, recipe)
        session = build(recipe, model, train_set, test_set, optimizer=optimizer)
        files.require_space(out / files.CHECKPOINTS, session.checkpoint_size)
        files.clear(out)
        record.write_run(out, session)
        return session, [], None, []
    kept, refused = checkpoint.newest(out)
    checkpoint.require_same_recipe(kept.recipe, recipe, kept.path)
    session = build(recipe, model, train_set, test_set, kept.layout, optimizer)
    checkpoint.require_same_samples(kept.samples, len(session.train), kept.path)
    session.load_state_dict(kept.session)
    files.sweep(out)
    files.require_space(out / files.CHECKPOINTS, session.checkpoint_size)
    doubts = checkpoint.set_aside(refused, kept.path) + session.doubts(kept.machine)
    history = record.restore_metrics(out, [item.to_dict() for item in kept.history])
    return session, [Epoch.from_dict(values) for values in history], kept.underway, doubts
