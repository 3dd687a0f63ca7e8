"""What a training run tells whoever watches; the library itself is silent."""

from __future__ import annotations

import warnings
from typing import Protocol

from spfde.train.metrics import Epoch, Event
from spfde.train.recipe import Recipe


class Progress(Protocol):
    """Watches a run; every call must return quickly."""

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Training starts at `first_epoch`; `note` says what was settled before."""

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """A step of `samples` samples is done: the `step`-th (from 0) of `steps`."""

    def event(self, epoch: int, event: Event) -> None:
        """A lever did something."""

    def epoch(self, record: Epoch) -> None:
        """An epoch is done, its checkpoint written."""

    def warn(self, text: str) -> None:
        """Something is not as it should be, and the run goes on."""

    def close(self) -> None:
        """The run ended, well or not."""


class Silent:
    """Progress that nobody watches; what is not as it should be becomes a Python warning."""

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Say nothing."""

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """Say nothing."""

    def event(self, epoch: int, event: Event) -> None:
        """Say nothing."""

    def epoch(self, record: Epoch) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Warn, at the line that called `fit`."""
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """Say nothing."""


class Together:
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

    def event(self, epoch: int, event: Event) -> None:
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
