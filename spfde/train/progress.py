"""What a training run tells whoever watches; the library itself is silent."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

from spfde.levers import Decision
from spfde.train.recipe import Recipe
from spfde.train.stats import Epoch


class Progress(Protocol):
    """Watches a run; every call must return quickly."""

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Training starts at `first_epoch`; `note` says what was settled before."""

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """A step of `samples` samples is done: the `step`-th (from 0) of `steps`."""

    def event(self, epoch: int, event: Decision) -> None:
        """A lever did something."""

    def epoch(self, record: Epoch) -> None:
        """An epoch is done, its checkpoint written."""

    def warn(self, text: str) -> None:
        """Something is not as it should be, and the run goes on."""

    def close(self) -> None:
        """The run ended, well or not."""


class NullProgress:
    """Progress that nobody watches; what is not as it should be becomes a Python warning."""

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Say nothing."""

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """Say nothing."""

    def event(self, epoch: int, event: Decision) -> None:
        """Say nothing."""

    def epoch(self, record: Epoch) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Warn, at the line that called `fit`."""
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """Say nothing."""


class MultiProgress:
    """Several watchers of one run, told in order."""

    def __init__(self, *watchers: Progress) -> None:
        self.watchers = watchers

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Tell all."""
        for watcher in self.watchers:
            watcher.start(recipe, first_epoch, note)

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """Tell all."""
        for watcher in self.watchers:
            watcher.step(epoch, step, steps, samples, loss)

    def event(self, epoch: int, event: Decision) -> None:
        """Tell all."""
        for watcher in self.watchers:
            watcher.event(epoch, event)

    def epoch(self, record: Epoch) -> None:
        """Tell all."""
        for watcher in self.watchers:
            watcher.epoch(record)

    def warn(self, text: str) -> None:
        """Tell the first: it is a person who is to know, and once."""
        for watcher in self.watchers[:1]:
            watcher.warn(text)

    def close(self) -> None:
        """Tell all."""
        for watcher in self.watchers:
            watcher.close()


def scalars(record: Epoch) -> dict[str, float]:
    """Return an epoch's figures by the name of their chart; charts of one group share a prefix."""
    return {
        "accuracy/test": record.test_accuracy,
        "accuracy/train": record.train_accuracy,
        "loss/train": record.train_loss,
        **({} if record.test_loss is None else {"loss/test": record.test_loss}),
        "learning rate": record.lr,
        "epoch/flops": record.flops,
        "epoch/samples": record.samples,
        "epoch/training seconds": record.training_seconds,
        "epoch/memory": record.memory,
        "levers/frozen blocks": len(record.frozen),
        "levers/sieved samples": record.sieved,
        "levers/sparsity": record.sparsity,
        **{f"seconds/{name}": value for name, value in record.seconds.items()},
        **{f"sparsity/{name}": value for name, value in record.layers.items()},
    }


class TensorBoard(NullProgress):
    """Progress that writes event files: `tensorboard --logdir DIRECTORY` shows them.

    A run that is resumed into the same directory takes the place of the epochs it repeats.

    Raises:
        ImportError: tensorboard is missing.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"expected tensorboard, got no such module ({error}), try pip install spfde[tensorboard]"
            ) from error
        self.directory, self._writer = directory, SummaryWriter
        self._files: SummaryWriter | None = None

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Open the event file."""
        self._files = self._writer(self.directory, purge_step=first_epoch)

    def epoch(self, record: Epoch) -> None:
        """Write an epoch's figures, and what each lever did and why: a resumed epoch's record has that of its start."""
        for event in record.events:
            self._files.add_text(f"levers/{event.kind}", f"{event.text} ({event.reason})", record.epoch)
        for name, value in scalars(record).items():
            self._files.add_scalar(name, value, record.epoch)
        self._files.flush()

    def close(self) -> None:
        """Close the event file, if the run got as far as opening it."""
        if self._files is not None:
            self._files.close()
