"""The training loop: epochs, evaluation, checkpoints, and where the time went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spfde.train import checkpoint, files, record
from spfde.train.batches import Source
from spfde.train.guard import diverged
from spfde.train.layout import Layout
from spfde.train.memory import forget_peak, peak_bytes
from spfde.train.metrics import Epoch, Event
from spfde.train.optimizer import Factory
from spfde.train.progress import Progress, Silent
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.schedule import steps_per_epoch
from spfde.train.session import Session, build
from spfde.train.step import forward_backward, update
from spfde.train.stopwatch import Stopwatch
from spfde.train.work import training_flops

EVALUATION_BATCH = 256


def fit(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    train_set: Dataset | None = None,
    test_set: Dataset | None = None,
    optimizer: Factory | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train a network as the recipe says.

    A given `model` is trained in place, and made sparse first if the recipe has a sparsity and it has no
    sparse layer; given data sets yield (image tensor, class index). torch's random state and thread count are
    the caller's again afterwards.

    Args:
        recipe: what to train and how; with `out`, the run directory gets run.json, metrics.jsonl,
            checkpoints/epoch-000.pt and so on, layers.json and result.json.
        model: a network, instead of the recipe's.
        train_set: training data, instead of the recipe's; comes with `test_set` and `model`.
        test_set: test data.
        optimizer: makes any torch optimizer from parameter groups, instead of the recipe's; the recipe's learning
            rate and schedule stay.
        resume: continue from the newest checkpoint in `out`, to the same bits as a run without the break.
        overwrite: replace the run that `out` holds.
        on_epoch: called with each epoch's record, outside of the timed part.
        progress: told what happens as it happens.

    Raises:
        ValueError: `out` cannot be used, or an option does not fit the data or the network.
        CheckpointError: the checkpoint to resume is damaged or belongs to another run.
        Diverged: the loss became NaN or infinite.
    """
    if resume and (recipe.out is None or overwrite):
        got = "overwrite" if overwrite else "out=None"
        raise ValueError(f"expected a run directory to resume, got {got}, try out=... and resume only")
    out = None if recipe.out is None else Path(recipe.out)
    if out is not None:
        files.check_directory(out, resume=resume, overwrite=overwrite)
    progress = progress or Silent()
    with torch.random.fork_rng(devices=[]), _threads(recipe.threads):
        recipe = dataclasses.replace(recipe, threads=torch.get_num_threads())
        session, history = _open(recipe, out, model, train_set, test_set, optimizer, resume)
        try:
            progress.start(recipe, len(history), f"{session.layout.name}: {session.layout.reason}")
            for epoch in range(len(history), recipe.epochs):
                done = run_epoch(session, epoch, history, out, progress)
                history.append(done)
                progress.epoch(done)
                if on_epoch is not None:
                    on_epoch(done)
        finally:
            progress.close()
        result = Result(recipe, session.model, tuple(history), session.layout)
        if out is not None:
            record.write_result(out, result, session)
    return result


def _open(
    recipe: Recipe,
    out: Path | None,
    model: nn.Module | None,
    train_set: Dataset | None,
    test_set: Dataset | None,
    optimizer: Factory | None,
    resume: bool,
) -> tuple[Session, list[Epoch]]:
    if not (resume and out is not None):
        session = build(recipe, model, train_set, test_set, optimizer=optimizer)
        if out is not None:
            files.clear(out)
            record.write_run(out, session)
        return session, []
    files.sweep(out)
    path = files.checkpoints(out)[-1]
    state = checkpoint.load(path)
    checkpoint.require_same_recipe(state, recipe, path)
    session = build(recipe, model, train_set, test_set, Layout(**state["layout"]), optimizer)
    checkpoint.require_same_samples(state, len(session.train), path)
    session.load_state_dict(state["session"])
    history = record.restore_metrics(out, state["history"])
    return session, [Epoch.from_dict(values) for values in history]


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


def run_epoch(session: Session, epoch: int, history: list[Epoch], out: Path | None, progress: Progress) -> Epoch:
    """Train, evaluate and checkpoint one epoch; `history` holds the records of those before it."""
    watch, model, levers = Stopwatch(), session.model, session.levers
    forget_peak()
    with watch("levers"):
        events = levers.begin_epoch(epoch)
    for event in events:
        progress.event(epoch, event)
    with watch("data"):
        order = levers.order(epoch)
    samples = len(order)
    flops = training_flops(model, session.example) * samples
    loss, correct, lr = train_epoch(session, epoch, order, events, watch, progress)
    memory = peak_bytes()  # before evaluation, whose batches are larger
    with watch("evaluation"), session.autocast():
        accuracy = evaluate(model, session.test, session.layout)
    with watch("levers"):
        levers.end_epoch()
    done = Epoch(
        epoch=epoch,
        train_loss=loss / samples,
        train_accuracy=correct / samples,
        test_accuracy=accuracy,
        lr=lr,
        samples=samples,
        flops=flops,
        seconds=watch.seconds(),
        frozen=levers.frozen,
        sieved=levers.sieved,
        sparsity=record.sparsity(model),
        events=tuple(events),
        layers=record.layer_sparsity(model),
        memory=memory,
    )
    if out is not None:
        with watch("checkpoint"):
            state = {
                "recipe": session.recipe.to_dict(),
                "samples": len(session.train),
                "layout": dataclasses.asdict(session.layout),
                "history": [item.to_dict() for item in (*history, done)],
                "session": session.state_dict(),
            }
            checkpoint.save(out, epoch, state, session.recipe.keep_checkpoints)
        done = dataclasses.replace(done, seconds=watch.seconds())
        files.append_line(out / files.METRICS, done.to_dict())
    return done


def train_epoch(
    session: Session, epoch: int, order: Tensor, events: list[Event], watch: Stopwatch, progress: Progress
) -> tuple[float, int, float]:
    """Run an epoch's steps over `order` [n]; return summed loss, samples that were right, last learning rate.

    Raises:
        Diverged: the loss became NaN or infinite; that step is not taken.
    """
    from spfde.kernels import clock

    recipe, model, optimizer, levers = session.recipe, session.model, session.optimizer, session.levers
    steps = steps_per_epoch(len(order), recipe.batch_size)
    batches = session.train.batches(order, recipe.batch_size)
    total, correct, lr = 0.0, 0, 0.0
    model.train()
    for step in range(steps):
        with watch("data"):
            images, targets, indices = next(batches)
            images = session.inputs(images, indices, epoch)
        with watch("step"), clock.measure() as kernels:
            lr = session.set_learning_rate((epoch + (step + 0.5) / steps) / recipe.epochs)
            optimizer.zero_grad(set_to_none=True)
            logits, value = forward_backward(session, images, targets)
            if not math.isfinite(value):
                raise diverged(model, images, value, epoch=epoch, step=step, lr=lr)
            update(session)
            correct += int((logits.argmax(1) == targets).sum())
        watch.move("step", "kernels", kernels.seconds)
        with watch("levers"):
            levers.observe(indices, logits, targets)
            moved = levers.step()
        for event in moved:
            progress.event(epoch, event)
        events += moved
        total += value * len(targets)
        progress.step(epoch, step, steps, len(targets), value)
    return total, correct, lr


def evaluate(model: nn.Module, source: Source, layout: Layout) -> float:
    """Return the fraction of samples whose largest logit is their class; the model is left in eval mode."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, targets, _ in source.batches(torch.arange(len(source)), EVALUATION_BATCH):
            correct += int((model(layout.images(images)).argmax(1) == targets).sum())
    return correct / len(source)
