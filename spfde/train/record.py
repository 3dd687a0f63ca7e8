"""The files of a run directory that say what ran, how it went and what came out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spfde.freezing import FreezeReport
from spfde.sieving import Sieve, SieveRecord
from spfde.sieving.record import SHOWN
from spfde.train import checkpoint, run_dir, stats
from spfde.train.device import Layout
from spfde.train.recipe import Recipe, toml
from spfde.train.session import Session
from spfde.train.stats import Epoch
from spfde.train.task import TASKS, Task


@dataclass(frozen=True)
class Result:
    """A finished run: the recipe as it ran, the trained network, one record per epoch, the memory format.

    Seconds are those of the epochs; `training_seconds` leaves out evaluation and checkpoints. `rounds` is imp's table,
    a mapping per round: round, sparsity, test_accuracy, training_seconds, flops.
    """

    recipe: Recipe
    model: nn.Module
    epochs: tuple[Epoch, ...]
    layout: Layout
    rounds: tuple[Mapping[str, Any], ...] = ()

    @property
    def task(self) -> Task:
        """What was learnt, which says by which figure it is judged."""
        return TASKS[self.epochs[-1].task]

    @property
    def figure(self) -> float:
        """The task's figure (`task.metric`) after the last epoch."""
        return self.epochs[-1].figure

    @property
    def test_accuracy(self) -> float:
        """Test accuracy after the last epoch, a fraction."""
        return self.epochs[-1].test_accuracy

    @property
    def best_test_accuracy(self) -> float:
        """Highest test accuracy of any epoch, a fraction; choosing by it would peek at the test set."""
        return max(item.test_accuracy for item in self.epochs)

    @property
    def total_seconds(self) -> float:
        """Seconds of all epochs."""
        return math.fsum(item.total_seconds for item in self.epochs)

    @property
    def training_seconds(self) -> float:
        """Seconds of all epochs without evaluation and checkpoints."""
        return math.fsum(item.training_seconds for item in self.epochs)

    @property
    def flops(self) -> float:
        """Training FLOPs of all epochs."""
        return math.fsum(item.flops for item in self.epochs)

    def __str__(self) -> str:
        last = self.epochs[-1]
        figure = f"{self.task.metric} {self.task.text(self.figure)}, weights {last.sparsity:.1%} sparse"
        cost = f"{self.training_seconds:.1f} s of training, {self.flops:.3g} FLOPs"
        return f"{self.recipe.method}, {len(self.epochs)} epochs: {figure}, {cost}"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, as result.json holds them."""
        seconds = {name: math.fsum(item.seconds[name] for item in self.epochs) for name in self.epochs[-1].seconds}
        return {
            "method": self.recipe.method,
            "epochs": len(self.epochs),
            "task": self.task.name,
            "test_accuracy": self.test_accuracy,
            "best_test_accuracy": self.best_test_accuracy,
            "train_accuracy": self.epochs[-1].train_accuracy,
            "test_loss": self.epochs[-1].test_loss,
            "total_seconds": self.total_seconds,
            "training_seconds": self.training_seconds,
            "seconds": seconds,
            "flops": self.flops,
            "sparsity": self.epochs[-1].sparsity,
            "threads": self.recipe.threads,
            "device": self.recipe.device,
            "layout": dataclasses.asdict(self.layout),
        }


def sparsity(model: nn.Module) -> float:
    """Return the fraction of zeros over the sparse layers' weights; 0 when there is none."""
    from spfde.nn import SparseLayer

    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    weights = sum(layer.shape.numel() for layer in layers)
    return 1 - sum(layer.stored for layer in layers) / weights if weights else 0.0


def layer_sparsity(model: nn.Module) -> dict[str, float]:
    """Return the fraction of zeros of every weighted layer, in the order of the network."""
    from spfde.nn.weighted import weighted_layers

    return {name: 1 - layer.stored / max(1, layer.size) for name, layer in weighted_layers(model).items()}


def write_run(out: Path, session: Session) -> None:
    """Write recipe.toml and run.json: the recipe as it runs, the machine, what was settled before the first step."""
    from spfde import env
    from spfde._version import __version__

    freezers = [lever for lever in session.levers if hasattr(lever, "frozen") and hasattr(lever, "report")]
    freezing = [report.to_dict() for each in freezers if isinstance(report := each.report(), FreezeReport)]
    values = {
        "recipe": session.recipe.to_dict(),
        "environment": env.report(),
        "version": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "samples": {"train": len(session.train), "test": len(session.test)},
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "layout": dataclasses.asdict(session.layout),
        "ranks": session.ranks.count,
        "optimizer": type(session.optimizer).__name__,
        "levers": [type(lever).__name__ for lever in session.levers],
        "freezing": freezing[0] if freezing else None,
    }
    run_dir.write_json(out / run_dir.RUN, values)
    run_dir.write_text(out / run_dir.RECIPE, toml.text(session.recipe))


def require_begun(out: Path, recipe: Recipe) -> None:
    """Check that the run that began in a directory, and ended before its first checkpoint, has this recipe.

    Raises:
        CheckpointError: it has another one, or run.json is not readable.
    """
    path = out / run_dir.RUN
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise checkpoint.CheckpointError(
            f"expected a run's recipe in {path}, got {type(error).__name__}: {error}, try without resume"
        ) from error
    checkpoint.require_same_recipe(kept, recipe, path)


def kept_threads(out: Path) -> int | None:
    """Return the threads that the run of a directory has, None where its run.json does not say."""
    try:
        threads = json.loads((out / run_dir.RUN).read_text(encoding="utf-8"))["recipe"]["threads"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return threads if isinstance(threads, int) else None


def restore_metrics(out: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring metrics.jsonl to the checkpoint's epoch, and return its records.

    From the first line that is no whole record on, the checkpoint's own take the lines' place.
    """
    path = out / run_dir.METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = takewhile(stats.is_whole, stats.parse_lines(text))
    records = stats.reconcile(list(lines), history)
    run_dir.write_lines(path, records)
    return records


def write_result(out: Path, result: Result, session: Session) -> None:
    """Write result.json and layers.json, and sieve.json where a sieve chose the samples."""
    from spfde import summary

    # A layer tells the kernel of the batch it saw last: let that be one of training, not of evaluation.
    batch = session.example.expand(session.recipe.batch_size, *session.example.shape[1:])
    with session.device.autocast():
        rows = summary(result.model.eval(), session.layout.images(batch)).rows
    run_dir.write_json(out / run_dir.LAYERS, [dataclasses.asdict(row) for row in rows])
    if isinstance(session.levers.sampler, Sieve):
        kept = _sieve_record(session.levers.sampler, session)
        run_dir.write_json(out / run_dir.SIEVE, dataclasses.asdict(kept))
    run_dir.write_json(out / run_dir.RESULT, result.to_dict())


def _sieve_record(sieve: Sieve, session: Session) -> SieveRecord:
    report = sieve.report()
    first = torch.tensor(report.never_learned[:SHOWN])
    batches = session.train.batches(first, SHOWN, key=(session.recipe.seed, session.epoch, 1)) if len(first) else ()
    items = [pair for inputs, targets, _ in batches for pair in zip(inputs, targets.tolist(), strict=True)]
    return SieveRecord.of(report, items)
