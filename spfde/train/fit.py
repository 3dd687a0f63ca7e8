"""`fit`: a recipe's run from its directory to its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from spfde.levers import Lever, LeverFactory
from spfde.train import record, run_dir
from spfde.train.build import build
from spfde.train.checkpointer import Checkpointer, start_or_resume
from spfde.train.data import isolated
from spfde.train.device import Device, Layout
from spfde.train.distributed import joined, restarted
from spfde.train.imp import Rounds
from spfde.train.loop import Loop
from spfde.train.optimizer import Factory
from spfde.train.progress import MultiProgress, NullProgress, Progress
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.session import Inputs
from spfde.train.stats import Epoch
from spfde.train.stops import Interrupts


def fit(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    train_set: Dataset[Any] | None = None,
    test_set: Dataset[Any] | None = None,
    optimizer: Factory | None = None,
    levers: Iterable[Lever | LeverFactory] = (),
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train a network as the recipe says.

    Started by torchrun, or where torch.distributed is initialised, all ranks call it alike and train one model: each
    computes its part of every batch. The first one writes. torchrun's restart of a rank that failed resumes.

    A given `model` is trained in place, and made sparse first if the recipe has a sparsity and it has no sparse layer;
    given data sets yield (image tensor, class index), or (tokens int64 [t], next tokens int64 [t]). torch's random
    state and thread count are the caller's again afterwards.

    Args:
        recipe: what to train and how; with `out`, the run directory gets run.json, metrics.jsonl,
            checkpoints/epoch-000.pt and so on, layers.json and result.json.
        model: a network, instead of the recipe's.
        train_set: training data, instead of the recipe's; comes with `test_set` and `model`.
        test_set: test data.
        optimizer: makes any torch optimizer from parameter groups, instead of the recipe's; the recipe's learning
            rate and schedule stay.
        levers: more levers (spfde.levers), told after the recipe's topology, freezer and sieve in the order given;
            each is one, or makes one when called with the run. A run that is resumed is given the same ones again.
        resume: continue from the newest checkpoint in `out` that can be used, to the same bits as a run without
            the break; newer ones that cannot are named and set aside.
        overwrite: replace the run that `out` holds.
        on_epoch: called with each epoch's record, outside of the timed part.
        progress: told what happens as it happens.

    Raises:
        ValueError: `out` cannot be used, or an option does not fit the data, the network or the ranks.
        RankLost: another rank ended; its error is told, if it had one.
        TypeError: one of `levers` is none.
        CheckpointError: no checkpoint to resume can be read, or it belongs to another run.
        WriteError: a file cannot be written; what was kept before stands.
        Interrupted: SIGINT, SIGTERM or SIGHUP asked a run with `out` to stop; it is kept up to its last step.
        Diverged: the loss became NaN or infinite.
    """
    if resume and (recipe.out is None or overwrite):
        got = "overwrite" if overwrite else "out=None"
        raise ValueError(f"expected a run directory to resume, got {got}, try out=... and resume only")
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        inputs = Inputs(recipe, model, train_set, test_set, optimizer, tuple(levers), ranks=ranks)
        out = inputs.out
        if out is not None:
            if restarted(ranks):
                resume, overwrite = ranks.once(lambda: run_dir.holds_run(out)), False
            ranks.once(lambda: run_dir.check_directory(out, resume=resume, overwrite=overwrite))
            ranks.once(lambda: stack.enter_context(run_dir.locked(out)))
        stack.enter_context(isolated(Device.of(recipe.device).where))
        if resume and recipe.threads is None:  # the numbers depend on it: a run goes on with its own
            recipe = dataclasses.replace(recipe, threads=ranks.once(lambda: record.kept_threads(out)))
        stack.enter_context(_threads(recipe.threads))
        inputs = dataclasses.replace(inputs, recipe=dataclasses.replace(recipe, threads=torch.get_num_threads()))
        watcher = (progress or NullProgress()) if ranks.rank == 0 else MultiProgress()
        return _run(inputs, resume, on_epoch, watcher)


def _run(inputs: Inputs, resume: bool, on_epoch: Callable[[Epoch], None] | None, progress: Progress) -> Result:
    recipe, out, interrupts = inputs.recipe, inputs.out, Interrupts()
    in_rounds = recipe.method == "imp"
    start = start_or_resume(inputs, resume, Rounds if in_rounds else Training)
    checkpointer = Checkpointer(out, start.trained, start.history, interrupts, by_epoch=not in_rounds)
    loop = Loop(start, checkpointer, progress, on_epoch)
    layout = loop.session.layout
    try:
        progress.start(recipe, len(start.history), f"memory format {layout.name}: {layout.reason}")
        for warning in start.warnings:
            progress.warn(warning)
        with interrupts.caught() if checkpointer.by_epoch else nullcontext():
            start.trained.run(loop)
        loop.session.front.forget()
    finally:
        loop.session.close()
        loop.session.front.close()
        progress.close()
    result = Result(recipe, start.trained.model, tuple(start.history), layout, tuple(start.trained.table))
    if out is not None:
        inputs.ranks.once(lambda: record.write_result(out, result, loop.session))
    return result


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None and count != before:
            torch.set_num_threads(count)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


class Training:
    """A run of one training, from where it is to its last epoch."""

    table: tuple[Mapping[str, Any], ...] = ()

    def __init__(self, inputs: Inputs, layout: Layout | None = None) -> None:
        self.session = build(inputs, layout)
        self.state_dict, self.load_state_dict = self.session.state_dict, self.session.load_state_dict

    @property
    def model(self) -> nn.Module:
        """The trained network."""
        return self.session.model

    @property
    def checkpoint_size(self) -> int:
        """At least the bytes of a checkpoint."""
        return self.session.checkpoint_size

    def run(self, loop: Loop) -> None:
        """Train the epochs that are left."""
        loop.epochs(len(loop.history), self.session.recipe.epochs)
