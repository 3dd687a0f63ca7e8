"""The training loop: epochs, evaluation, checkpoints, and where the time went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spfde.levers import Decision, EpochEnd, EpochStart, Lever, LeverFactory, Step
from spfde.train import record, run_dir
from spfde.train.build import build
from spfde.train.checkpointer import Checkpointer, Start, start_or_resume
from spfde.train.data import isolated
from spfde.train.device import Device, Layout
from spfde.train.flops import training_flops
from spfde.train.optimizer import Factory, steps_per_epoch
from spfde.train.progress import NullProgress, Progress
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.session import Inputs, Session
from spfde.train.stats import Epoch, EpochProgress, Stopwatch
from spfde.train.step import forward_backward, update
from spfde.train.stops import Interrupts, diverged

EVALUATION_BATCH = 256


def fit(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    train_set: Dataset | None = None,
    test_set: Dataset | None = None,
    optimizer: Factory | None = None,
    levers: Iterable[Lever | LeverFactory] = (),
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
        levers: more levers (spfde.levers), told after the recipe's topology, freezer and sieve in the order given;
            each is one, or makes one when called with the run. A run that is resumed is given the same ones again.
        resume: continue from the newest checkpoint in `out` that can be used, to the same bits as a run without
            the break; newer ones that cannot are named and set aside.
        overwrite: replace the run that `out` holds.
        on_epoch: called with each epoch's record, outside of the timed part.
        progress: told what happens as it happens.

    Raises:
        ValueError: `out` cannot be used, or an option does not fit the data or the network.
        TypeError: one of `levers` is none.
        CheckpointError: no checkpoint to resume can be read, or it belongs to another run.
        WriteError: a file cannot be written; what was kept before stands.
        Interrupted: SIGINT or SIGTERM asked a run with `out` to stop; it is kept up to its last step.
        Diverged: the loss became NaN or infinite.
    """
    if resume and (recipe.out is None or overwrite):
        got = "overwrite" if overwrite else "out=None"
        raise ValueError(f"expected a run directory to resume, got {got}, try out=... and resume only")
    inputs = Inputs(recipe, model, train_set, test_set, optimizer, tuple(levers))
    with ExitStack() as stack:
        if inputs.out is not None:
            run_dir.check_directory(inputs.out, resume=resume, overwrite=overwrite)
            stack.enter_context(run_dir.locked(inputs.out))
        stack.enter_context(isolated(Device.of(recipe.device).where))
        stack.enter_context(_threads(recipe.threads))
        inputs = dataclasses.replace(inputs, recipe=dataclasses.replace(recipe, threads=torch.get_num_threads()))
        return _run(inputs, resume, on_epoch, progress or NullProgress())


def _run(inputs: Inputs, resume: bool, on_epoch: Callable[[Epoch], None] | None, progress: Progress) -> Result:
    recipe, out, interrupts = inputs.recipe, inputs.out, Interrupts()
    in_rounds = recipe.method == "imp"
    if in_rounds:
        from spfde.train.imp import Rounds

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
    finally:
        loop.session.close()
        progress.close()
    result = Result(recipe, start.trained.model, tuple(start.history), layout, tuple(start.trained.table))
    if out is not None:
        record.write_result(out, result, loop.session)
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


class Loop:
    """Trains epochs of a session one after the other, with all that watches and keeps them."""

    def __init__(
        self,
        start: Start,
        checkpointer: Checkpointer,
        progress: Progress,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> None:
        self.session: Session = start.trained.session
        self.history, self.underway = start.history, start.underway
        self.checkpointer, self.progress, self.on_epoch = checkpointer, progress, on_epoch

    def epochs(self, first: int, last: int) -> None:
        """Train the epochs [first, last), the first one from where it is if it is under way."""
        for epoch in range(first, last):
            done = self.epoch(epoch)
            self.history.append(done)
            self.progress.epoch(done)
            if self.on_epoch is not None:
                self.on_epoch(done)
            self.checkpointer.between(done)

    def epoch(self, epoch: int) -> Epoch:
        """Train, evaluate and checkpoint one epoch."""
        session, underway, self.underway = self.session, self.underway, None
        watch = Stopwatch(seconds=underway.seconds if underway else {})
        session.device.forget_peak()
        events: list[Decision] = []
        if underway is None and session.levers.sampler is not None:
            with watch("levers"):
                events += session.levers.sampler.begin_epoch(epoch)
        with watch("data"):
            order = session.start_epoch(epoch)
        samples, steps = len(order), steps_per_epoch(len(order), session.recipe.batch_size)
        if underway is None:
            with watch("levers"):
                events += session.levers.tell(EpochStart(epoch, steps), session)
            self._tell(epoch, events)
            flops = training_flops(session.model, session.example)
            underway = EpochProgress(epoch, sample_flops=flops, events=tuple(events))
        underway = self._steps(order, steps, underway, watch)
        memory = session.device.peak_bytes()  # before evaluation, whose batches are larger
        with watch("evaluation"):
            accuracy = evaluate(session, lambda: self.checkpointer.pause(underway))
        with watch("levers"):
            ended = session.levers.tell(EpochEnd(epoch, accuracy), session)
        self._tell(epoch, ended)
        done = Epoch(
            epoch=epoch,
            train_loss=underway.loss / samples,
            train_accuracy=underway.correct / samples,
            test_accuracy=accuracy,
            lr=underway.lr,
            samples=samples,
            flops=underway.flops,
            seconds=watch.seconds(),
            frozen=session.frozen,
            sieved=len(session.train) - samples,
            sparsity=record.sparsity(session.model),
            events=(*underway.events, *ended),
            layers=record.layer_sparsity(session.model),
            memory=memory,
        )
        with watch("checkpoint"):
            self.checkpointer.epoch(done)
        done = dataclasses.replace(done, seconds=watch.seconds())
        if self.checkpointer.out is not None:
            run_dir.append_line(self.checkpointer.out / run_dir.METRICS, done.to_dict())
        return done

    def _steps(self, order: Tensor, steps: int, underway: EpochProgress, watch: Stopwatch) -> EpochProgress:
        """Run the steps that an epoch under way has left over `order` [n]; return where it is then.

        Raises:
            Diverged: the loss became NaN or infinite; that step is not taken.
            Interrupted: the run was asked to stop; it is kept.
        """
        from spfde.kernels import clock

        session, recipe, model, epoch = self.session, self.session.recipe, self.session.model, underway.epoch
        left = order[underway.step * recipe.batch_size :]
        batches = session.train.batches(left, recipe.batch_size, key=(recipe.seed, epoch))
        model.train()
        for step in range(underway.step, steps):
            with watch("data"):
                images, targets, indices = next(batches)
                images, targets = session.inputs(images, indices, epoch), session.device.put(targets)
            frozen, flops = session.frozen, underway.sample_flops
            with watch("step"), clock.measure() as kernels:
                lr = session.set_learning_rate(recipe.passed(epoch + (step + 0.5) / steps))
                session.optimizer.zero_grad(set_to_none=True)
                logits, value = forward_backward(session, images, targets, indices, watch)
                if not math.isfinite(value):
                    raise diverged(model, images, value, epoch=epoch, step=step, lr=lr)
                taken = update(session)
                correct = int((logits.argmax(1) == targets).sum())
            watch.move("step", "kernels", kernels.seconds)
            session.step, session.samples = session.step + 1, session.samples + len(targets)
            with watch("levers"):
                events = session.levers.tell(Step(taken), session)
            self._tell(epoch, events)
            underway = dataclasses.replace(
                underway,
                step=step + 1,
                flops=underway.flops + flops * len(targets),
                sample_flops=flops if session.frozen == frozen else training_flops(model, session.example),
                loss=underway.loss + value * len(targets),
                correct=underway.correct + correct,
                lr=lr,
                seconds=watch.seconds(),
                events=(*underway.events, *events),
            )
            self.progress.step(epoch, step, steps, len(targets), value)
            with watch("checkpoint"):
                self.checkpointer.step(underway)
        return underway

    def _tell(self, epoch: int, events: Iterable[Decision]) -> None:
        for event in events:
            self.progress.event(epoch, event)


def evaluate(session: Session, pause: Callable[[], None] = lambda: None) -> float:
    """Return the fraction of test samples whose largest logit is their class; the model is left in eval mode.

    `pause` is called before every batch.
    """
    model, source = session.model.eval(), session.test
    correct = 0
    with torch.no_grad(), session.device.autocast():
        for images, targets, _ in source.batches(torch.arange(len(source)), EVALUATION_BATCH):
            pause()
            images, targets = session.device.put(session.layout.images(images)), session.device.put(targets)
            correct += int((model(images).argmax(1) == targets).sum())
    return correct / len(source)
