"""A run in a terminal: a line per epoch and per lever's deed, and a live one with rate, time left, the last deed."""

from __future__ import annotations

import textwrap
import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from spfde.levers import Decision
from spfde.train.recipe import Recipe
from spfde.train.recipe.toml import text
from spfde.train.stats import Epoch
from spfde.train.task import CLASSIFICATION, TASKS

REFRESH_SECONDS = 0.2


def place(epoch: int, epochs: int) -> str:
    """Name an epoch as every other place does, from 0, and how many that makes: `epoch 4 (5/20)`."""
    width = len(str(epochs))
    return f"epoch {epoch:>{width}} ({epoch + 1:>{width}}/{epochs})"


def epoch_line(record: Epoch, epochs: int) -> str:
    """Sum up an epoch of `epochs`: loss, accuracies or perplexity, and seconds."""
    figures = (
        f"train {record.train_accuracy:6.1%}  test {record.test_accuracy:6.1%}"
        if record.task == CLASSIFICATION.name
        else f"{TASKS[record.task].metric} {record.figure:6.3f}"
    )
    return f"{place(record.epoch, epochs)}  loss {record.train_loss:.3f}  {figures}  {record.total_seconds:6.1f} s"


def event_line(event: Decision, *, told: bool = False) -> str:
    """Say what a lever did, and why unless that was `told` before."""
    return f"  {event.kind}: {event.text}" + ("" if told else f", because: {event.reason}")


def recipe_lines(recipe: Recipe) -> str:
    """Say every field of a recipe that has a value, as TOML would, in a few lines."""
    fields = ", ".join(line.replace(" = ", "=", 1) for line in text(recipe).splitlines())
    return textwrap.fill(
        f"recipe: {fields}", 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup read into paths, no wrapping."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Display:
    """Progress on a rich console: a live line where it is a terminal, plain lines where it is not."""

    def __init__(self, console: Console, name: str) -> None:
        self.console, self.name = console, name
        self._epochs = 0
        self._samples = 0
        self._began = self._shown = 0.0
        self._reasons: dict[str, str] = {}
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[epoch]}  {task.fields[rate]:.0f} samples/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Say what starts, and show the live line."""
        self._epochs = recipe.all_epochs
        say(self.console, recipe_lines(recipe))
        say(self.console, f"{self.name}: starts at epoch {first_epoch}, {note}")
        now = {"epoch": place(first_epoch, self._epochs), "rate": 0.0, "note": ""}
        self._task = self._bar.add_task(self.name, total=self._epochs, completed=first_epoch, **now)
        self._bar.start()
        self._began = time.perf_counter()

    def step(self, epoch: int, step: int, steps: int, samples: int, loss: float) -> None:
        """Move the live line on, a few times a second."""
        self._samples += samples
        now = time.perf_counter()
        if now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        self._bar.update(
            self._task,
            completed=epoch + (step + 1) / steps,
            epoch=place(epoch, self._epochs),
            rate=self._samples / (now - self._began),
            refresh=True,
        )

    def event(self, epoch: int, event: Decision) -> None:
        """Write what a lever did, and why where that is new; keep the deed at the end of the live line."""
        say(self.console, event_line(event, told=self._reasons.get(event.kind) == event.reason))
        self._reasons[event.kind] = event.reason
        self._bar.update(self._task, note=event.text)

    def epoch(self, record: Epoch) -> None:
        """Write the epoch's line."""
        say(self.console, epoch_line(record, self._epochs))
        self._bar.update(self._task, completed=record.epoch + 1)
        self._samples, self._began = 0, time.perf_counter()

    def warn(self, text: str) -> None:
        """Write a line."""
        say(self.console, f"{self.name}: {text}")

    def close(self) -> None:
        """Take the live line away."""
        self._bar.stop()
