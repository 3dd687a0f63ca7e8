"""Which memory format a network trains in, and why."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Layout:
    """A memory format by name ("contiguous" or "channels_last") and the reason for it."""

    name: str
    reason: str

    def images(self, images: Tensor) -> Tensor:
        """Return a batch of images in this format."""
        return images.contiguous(memory_format=FORMATS[self.name])

    def model(self, model: nn.Module) -> nn.Module:
        """Put a network's weights into this format, in place."""
        return model.to(memory_format=FORMATS[self.name])  # type: ignore[call-overload]


def step_seconds(model: nn.Module, shape: tuple[int, ...], steps: int = 3) -> dict[str, float]:
    """Time a training step in each memory format, in seconds: the median of `steps`, formats taking turns.

    Runs on copies with random images of `shape` [n, c, h, w]; model and random state stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        images, targets = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
        layouts = {name: Layout(name, "") for name in FORMATS}
        models = {name: layout.model(copy.deepcopy(model).train()) for name, layout in layouts.items()}
        seconds: dict[str, list[float]] = {name: [] for name in FORMATS}
        for _ in range(steps + 1):
            for name, layout in layouts.items():
                start = time.perf_counter()
                functional.cross_entropy(models[name](layout.images(images)), targets).backward()
                models[name].zero_grad()
                seconds[name].append(time.perf_counter() - start)
    # The first step also allocates and picks algorithms.
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def choose(wanted: str, model: nn.Module, shape: tuple[int, ...], *, measure: bool) -> Layout:
    """Settle a recipe's `layout` for inputs of `shape`; "auto" is measured if `measure` says so.

    Raises:
        ValueError: channels_last for inputs that have no height and width.
    """
    if len(shape) != 4:
        if wanted == "channels_last":
            raise ValueError(
                f"expected images [n, c, h, w] for channels_last, got inputs of shape {list(shape)}, try layout='auto'"
            )
        return Layout("contiguous", "inputs are not images")
    if wanted != "auto":
        return Layout(wanted, "as the recipe says")
    if not measure:
        return Layout("contiguous", "sparse kernels read image planes")
    seconds = step_seconds(model, shape)
    best, other = sorted(seconds, key=seconds.__getitem__)
    return Layout(
        best,
        f"{seconds[best] * 1e3:.1f} ms a step, {other} {seconds[other] * 1e3:.1f} ms,"
        f" measured before training with batch {shape[0]}",
    )
