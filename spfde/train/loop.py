"""The training loop: epochs and steps, evaluation, and where the time went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from spfde.levers import Decision, EpochEnd, EpochStart, Step
from spfde.train import record, run_dir
from spfde.train.checkpointer import Checkpointer, Start
from spfde.train.data import require_within, split
from spfde.train.flops import training_flops
from spfde.train.optimizer import steps_per_epoch
from spfde.train.progress import Progress
from spfde.train.session import Session
from spfde.train.stats import Epoch, EpochProgress, Stopwatch
from spfde.train.step import forward_backward, log_probabilities, update
from spfde.train.stops import diverged, unranked
from spfde.train.task import Task, task_of

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """A network on the test set: the share of targets that have the largest logit, their mean loss if it is finite."""

    accuracy: float
    loss: float | None
    task: Task


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
        samples, steps = len(order), steps_per_epoch(len(order), session.recipe.batch_size, session.ranks.count)
        if underway is None:
            with watch("levers"):
                events += session.levers.tell(EpochStart(epoch, steps), session)
            self._tell(epoch, events)
            flops = training_flops(session.model, session.example)
            underway = EpochProgress(epoch, sample_flops=flops, events=tuple(events))
        underway = self._steps(order, steps, underway, watch)
        memory = session.ranks.largest(session.device.peak_bytes())  # before evaluation, whose batches are larger
        with watch("evaluation"):
            tested = evaluate(session, lambda: self.checkpointer.pause(underway))
        with watch("levers"):
            ended = [*session.levers.tell(EpochEnd(epoch, tested.accuracy), session), *session.front.report()]
        self._tell(epoch, ended)
        done = Epoch(
            epoch=epoch,
            train_loss=underway.loss / samples,
            train_accuracy=underway.correct / underway.targets,
            test_accuracy=tested.accuracy,
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
            test_loss=tested.loss,
            task=tested.task.name,
            cache=session.front.told(underway.cache),
        )
        with watch("checkpoint"):
            self.checkpointer.epoch(done)
        done = dataclasses.replace(done, seconds=watch.seconds())
        self.checkpointer.append(run_dir.METRICS, done.to_dict())
        return done

    def _steps(self, order: Tensor, steps: int, underway: EpochProgress, watch: Stopwatch) -> EpochProgress:
        """Run the steps that an epoch under way has left over `order` [n]; return where it is then.

        Raises:
            Diverged: the loss became NaN or infinite; that step is not taken.
            Interrupted: the run was asked to stop; it is kept.
        """
        from spfde.kernels import clock

        session, recipe, model, epoch = self.session, self.session.recipe, self.session.model, underway.epoch
        left, ranks = order[underway.step * recipe.batch_size :], session.ranks
        wholes = map(len, split(left, recipe.batch_size, ranks))
        batches = session.train.batches(left, recipe.batch_size, key=(recipe.seed, epoch), ranks=ranks)
        model.train()
        for step in range(underway.step, steps):
            with watch("data"):
                (images, targets, indices), whole = next(batches), next(wholes)
                images, targets = session.inputs(images, indices, epoch), session.device.put(targets)
            frozen, flops = session.frozen, underway.sample_flops
            with watch("step"), clock.measure() as kernels:
                lr = session.set_learning_rate(recipe.passed(epoch + (step + 0.5) / steps))
                session.optimizer.zero_grad(set_to_none=True)
                with session.graph():
                    logits, value = forward_backward(session, images, targets, indices, watch, whole)
                finite = math.isfinite(value)
                hits = int((logits.argmax(-1) == targets).sum())  # not after the update: a GPU is waited for once
                loss, correct, seen = ranks.total([value * len(targets), hits, targets.numel()])
                if not math.isfinite(loss):
                    at = {"epoch": epoch, "step": step, "lr": lr}
                    ranks.check(None if finite else diverged(model, images, value, **at))
                taken = update(session, watch)
            watch.move("step", "kernels", kernels.seconds)
            session.step, session.samples = session.step + 1, session.samples + whole
            with watch("levers"):
                events = session.levers.tell(Step(taken), session)
            self._tell(epoch, events)
            cache = session.front.spent()
            underway = dataclasses.replace(
                underway,
                step=step + 1,
                flops=underway.flops + flops * whole - cache.get("flops", 0.0),
                sample_flops=flops if session.frozen == frozen else training_flops(model, session.example),
                loss=underway.loss + loss,
                targets=underway.targets + int(seen),
                correct=underway.correct + int(correct),
                lr=lr,
                seconds=watch.seconds(),
                events=(*underway.events, *events),
                cache={name: underway.cache.get(name, 0) + count for name, count in cache.items()} or underway.cache,
            )
            self.progress.step(epoch, step, steps, whole, loss / whole)
            with watch("checkpoint"):
                self.checkpointer.step(underway)
        return underway

    def _tell(self, epoch: int, events: Iterable[Decision]) -> None:
        for event in events:
            self.progress.event(epoch, event)


def evaluate(session: Session, pause: Callable[[], None] = lambda: None) -> Evaluation:
    """Measure the network on the test set, each rank on its part of every batch; it is left in eval mode.

    `pause` is called before every batch.

    Raises:
        Diverged: a logit is NaN, which has no largest.
        ValueError: a label is none of the model's classes.
        RuntimeError: the ranks' weights or masks differ.
    """
    session.meet()
    model, source, ranks = session.model.eval(), session.test, session.ranks
    correct, loss, count = 0, 0.0, 0
    with torch.no_grad(), session.device.autocast():
        for images, targets, _ in source.batches(torch.arange(len(source)), EVALUATION_BATCH, ranks=ranks):
            pause()
            images, labels = session.device.put(session.layout.images(images)), session.device.put(targets)
            logits = model(images)
            require_within(targets, logits.shape[-1])
            if logits.isnan().any():
                raise unranked(model, images, session.epoch)
            correct += int((logits.argmax(-1) == labels).sum())
            loss += nll_loss(log_probabilities(logits), labels.flatten(), reduction="sum").item()
            count += labels.numel()
    correct, loss, count = ranks.total([correct, loss, count])
    return Evaluation(correct / count, loss / count if math.isfinite(loss) else None, task_of(targets))
