"""The training loop: epochs, evaluation, checkpoints, and where the time went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spfde.train import files, randomness, record
from spfde.train.batches import Source
from spfde.train.guard import diverged
from spfde.train.interrupts import Interrupts
from spfde.train.keeper import Keeper
from spfde.train.layout import Layout
from spfde.train.lock import locked
from spfde.train.memory import forget_peak, peak_bytes
from spfde.train.metrics import Epoch, Underway
from spfde.train.opening import opened
from spfde.train.optimizer import Factory
from spfde.train.progress import Progress, Silent
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.schedule import steps_per_epoch
from spfde.train.session import Session
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
        resume: continue from the newest checkpoint in `out` that can be used, to the same bits as a run without
            the break; newer ones that cannot are named and set aside.
        overwrite: replace the run that `out` holds.
        on_epoch: called with each epoch's record, outside of the timed part.
        progress: told what happens as it happens.

    Raises:
        ValueError: `out` cannot be used, or an option does not fit the data or the network.
        CheckpointError: no checkpoint to resume can be read, or it belongs to another run.
        WriteError: a file cannot be written; what was kept before stands.
        Interrupted: SIGINT or SIGTERM asked a run with `out` to stop; it is kept up to its last step.
        Diverged: the loss became NaN or infinite.
    """
    if resume and (recipe.out is None or overwrite):
        got = "overwrite" if overwrite else "out=None"
        raise ValueError(f"expected a run directory to resume, got {got}, try out=... and resume only")
    out = None if recipe.out is None else Path(recipe.out)
    progress = progress or Silent()
    with ExitStack() as stack:
        if out is not None:
            files.check_directory(out, resume=resume, overwrite=overwrite)
            stack.enter_context(locked(out))
        stack.enter_context(randomness.isolated())
        stack.enter_context(_threads(recipe.threads))
        recipe = dataclasses.replace(recipe, threads=torch.get_num_threads())
        if recipe.method == "imp":
            from spfde.train import rounds  # which runs this module's epochs

            return rounds.run(recipe, out, model, train_set, test_set, optimizer, resume, on_epoch, progress)
        session, history, underway, doubts = opened(recipe, out, model, train_set, test_set, optimizer, resume)
        interrupts = Interrupts()
        keeper = Keeper(out, session, history, interrupts)
        try:
            progress.start(recipe, len(history), f"memory format {session.layout.name}: {session.layout.reason}")
            for doubt in doubts:
                progress.warn(doubt)
            with interrupts.caught() if out is not None else nullcontext():
                for epoch in range(len(history), recipe.epochs):
                    done = run_epoch(session, epoch, keeper, progress, underway)
                    history.append(done)
                    underway = None
                    progress.epoch(done)
                    if on_epoch is not None:
                        on_epoch(done)
                    keeper.between(done)
        finally:
            progress.close()
        result = Result(recipe, session.model, tuple(history), session.layout)
        if out is not None:
            record.write_result(out, result, session)
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


def run_epoch(
    session: Session, epoch: int, keeper: Keeper, progress: Progress, underway: Underway | None = None
) -> Epoch:
    """Train, evaluate and checkpoint one epoch, from its start or from where it is under way."""
    watch, model, levers = Stopwatch(seconds=underway.seconds if underway else {}), session.model, session.levers
    forget_peak()
    if underway is None:
        with watch("levers"):
            events = levers.begin_epoch(epoch)
        for event in events:
            progress.event(epoch, event)
    with watch("data"):
        order = levers.order(epoch)
    samples = len(order)
    if underway is None:
        flops = training_flops(model, session.example) * samples
        underway = Underway(epoch, flops=flops, events=tuple(events))
    underway = train_epoch(session, order, underway, watch, keeper, progress)
    memory = peak_bytes()  # before evaluation, whose batches are larger
    with watch("evaluation"), session.autocast():
        accuracy = evaluate(model, session.test, session.layout, lambda: keeper.pause(underway))
    with watch("levers"):
        levers.end_epoch()
    done = Epoch(
        epoch=epoch,
        train_loss=underway.loss / samples,
        train_accuracy=underway.correct / samples,
        test_accuracy=accuracy,
        lr=underway.lr,
        samples=samples,
        flops=underway.flops,
        seconds=watch.seconds(),
        frozen=levers.frozen,
        sieved=levers.sieved,
        sparsity=record.sparsity(model),
        events=underway.events,
        layers=record.layer_sparsity(model),
        memory=memory,
    )
    with watch("checkpoint"):
        keeper.epoch(done)
    done = dataclasses.replace(done, seconds=watch.seconds())
    if keeper.out is not None:
        files.append_line(keeper.out / files.METRICS, done.to_dict())
    return done


def train_epoch(
    session: Session, order: Tensor, underway: Underway, watch: Stopwatch, keeper: Keeper, progress: Progress
) -> Underway:
    """Run the steps that an epoch under way has left over `order` [n]; return where it is then.

    Raises:
        Diverged: the loss became NaN or infinite; that step is not taken.
        Interrupted: the run was asked to stop; it is kept.
    """
    from spfde.kernels import clock

    recipe, model, optimizer, levers = session.recipe, session.model, session.optimizer, session.levers
    epoch, steps = underway.epoch, steps_per_epoch(len(order), recipe.batch_size)
    left = order[underway.step * recipe.batch_size :]
    batches = session.train.batches(left, recipe.batch_size, key=(recipe.seed, epoch))
    model.train()
    for step in range(underway.step, steps):
        with watch("data"):
            images, targets, indices = next(batches)
            images = session.inputs(images, indices, epoch)
        with watch("step"), clock.measure() as kernels:
            lr = session.set_learning_rate(recipe.passed(epoch + (step + 0.5) / steps))
            optimizer.zero_grad(set_to_none=True)
            logits, value = forward_backward(session, images, targets)
            if not math.isfinite(value):
                raise diverged(model, images, value, epoch=epoch, step=step, lr=lr)
            update(session)
            correct = int((logits.argmax(1) == targets).sum())
        watch.move("step", "kernels", kernels.seconds)
        with watch("levers"):
            levers.observe(indices, logits, targets)
            moved = levers.step()
        for event in moved:
            progress.event(epoch, event)
        underway = dataclasses.replace(
            underway,
            step=step + 1,
            loss=underway.loss + value * len(targets),
            correct=underway.correct + correct,
            lr=lr,
            seconds=watch.seconds(),
            events=(*underway.events, *moved),
        )
        progress.step(epoch, step, steps, len(targets), value)
        with watch("checkpoint"):
            keeper.step(underway)
    return underway


def evaluate(model: nn.Module, source: Source, layout: Layout, pause: Callable[[], None] = lambda: None) -> float:
    """Return the fraction of samples whose largest logit is their class; the model is left in eval mode.

    `pause` is called before every batch.
    """
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, targets, _ in source.batches(torch.arange(len(source)), EVALUATION_BATCH):
            pause()
            correct += int((model(layout.images(images)).argmax(1) == targets).sum())
    return correct / len(source)
