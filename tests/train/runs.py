"""A run that is short and has everything: real digits, a small ResNet, all three levers at every epoch."""

import signal
from pathlib import Path
from typing import Any

import torch

from spfde.train import Epoch, Interrupted, Recipe, fit
from spfde.train.checkpoint import load
from spfde.train.progress import NullProgress
from spfde.train.run_dir import checkpoints

OPTIONS: dict[str, Any] = {
    "train_images": 128,
    "test_images": 32,
    "width": 0.25,
    "epochs": 5,
    "batch_size": 32,
    "interval": 1,
    "sparsity": 0.7,
    "freeze": 0.08,
    "sieve": 0.25,
    "lr": 0.05,
    "warmup": 0.2,
    "threads": 1,
}


class Stop(Exception):
    """What a test stops a run with."""


def recipe(**options) -> Recipe:
    return Recipe(**{**OPTIONS, **options})


def same(a, b) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def figures(record: Epoch) -> dict:
    """An epoch's record without what differs from run to run: seconds and memory."""
    return {k: v for k, v in record.to_dict().items() if k not in ("seconds", "total_seconds", "memory")}


def last_state(out: Path) -> dict:
    """What the newest checkpoint holds of the run: network, optimizer, levers, random state."""
    return load(checkpoints(out)[-1])["session"]


def stop_within(epoch: int, step: int, out: Path, fit=fit, **options) -> None:
    """Runs up to and with a step (from 1) of an epoch, then sends this process what Ctrl-C sends."""

    class Press(NullProgress):
        def step(self, at: int, done: int, *_) -> None:
            if (at, done + 1) == (epoch, step):
                signal.raise_signal(signal.SIGINT)

    try:
        fit(recipe(out=out, **options.pop("fields", {})), progress=Press(), **options)
    except Interrupted:
        return
    raise AssertionError(f"expected a run that reaches step {step} of epoch {epoch}")


def stop_after(epoch: int, out: Path, **options) -> None:
    """Runs up to and with an epoch, then raises."""

    def interrupt(record: Epoch) -> None:
        if record.epoch == epoch:
            raise Stop

    try:
        fit(recipe(out=out), on_epoch=interrupt, **options)
    except Stop:
        return
    raise AssertionError(f"expected a run that reaches epoch {epoch}")
