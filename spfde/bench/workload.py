"""A network with a batch to train it on: of the zoo, or anybody's that can be imported."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spfde import models
from spfde._modules import batch_size, eval_mode, random_state_restored, tensors

IMAGE, LARGE_IMAGE, TOKENS = 32, 224, 64
CLASSES, USUAL = 10, 64


@dataclass(frozen=True)
class Workload:
    """A network, a batch of inputs as `spfde.sparsify` takes them, and the loss of what it returns."""

    name: str
    model: nn.Module
    inputs: Any
    loss_fn: Callable[[Any], Tensor]

    @property
    def batch(self) -> int:
        """Samples."""
        return batch_size(self.inputs)


def workload(
    name: str, batch: int | None = None, size: int | None = None, shape: str | None = None, usual: int = USUAL
) -> Workload:
    """The network that a name stands for, on random data.

    name: one of the zoo, or "module:callable" of a function that returns a network, or a network and its batch. batch:
    samples; None: `usual`, or as many as come with the network. size: pixels a side, or tokens, of the zoo's; None: as
    the network was published. shape: of one sample, "3x224x224", for a network that comes without a batch.

    Raises:
        ValueError: the name or the size does not fit.
        ImportError: there is no such module.
    """
    if ":" in name:
        if size is not None:
            raise ValueError(f"expected no --size with {name!r}, got {size}, try --input 3x{size}x{size}")
        return _imported(name, batch, shape, usual)
    if shape is not None:
        raise ValueError(f"expected --input only with module:callable, got it with {name!r}, try --size")
    batch = batch or usual
    known = models.options(name)
    if "context" in known:
        tokens = torch.randint(CLASSES, (2, batch, size or TOKENS))
        load = Workload(name, models.create(name), tokens[0], _cross_entropy(tokens[1].flatten()))
        return _tried(load, "--size")
    network = models.create(name, **({"image_size": size} if size and "image_size" in known else {}))
    images = torch.randn(batch, 3, *([size or _usual_size(network)] * 2))
    load = Workload(name, network, images, _cross_entropy(torch.randint(CLASSES, (batch,))))
    return _tried(load, "--size")


def _cross_entropy(targets: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda output: F.cross_entropy(output.flatten(0, -2), targets.to(output.device))


def _usual_size(network: nn.Module) -> int:
    """Pixels a side of the images that the network was published on: those with 1000 classes are ImageNet's."""
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    return LARGE_IMAGE if last.out_features > 100 else IMAGE


def _imported(name: str, batch: int | None, shape: str | None, usual: int) -> Workload:
    module, _, attribute = name.partition(":")
    with _current_directory():
        found = import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"expected {module} to have {attribute!r}, got no such name, try one of its functions")
        found = getattr(found, part)
    made = found() if callable(found) and not isinstance(found, nn.Module) else found
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected {name} to return an nn.Module, got {type(model).__name__}, try another callable")
    if inputs is not None and shape is not None:
        raise ValueError(f"expected no --input with {name}, which returns its batch, got {shape}, try without it")
    if inputs is None and shape is None:
        raise ValueError(f"expected a batch with {name}, got none, try --input 3x224x224, or return (model, batch)")
    if inputs is None:
        return _tried(Workload(attribute, model, torch.randn(batch or usual, *sides(shape)), mean_square), "--input")
    load = Workload(attribute, model, inputs, mean_square)
    if batch is not None and load.batch != batch:
        raise ValueError(
            f"expected no --batch with {name!r}, which has its own batch of {load.batch}, got {batch}, try without it"
        )
    return load


def _tried(load: Workload, option: str) -> Workload:
    """The workload, whose network takes a sample of that shape.

    Raises:
        ValueError: it does not.
    """
    try:
        with torch.no_grad(), random_state_restored(load.model), eval_mode(load.model):
            load.model(load.inputs[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape, why = "x".join(map(str, load.inputs.shape[1:])), " ".join(str(error).split())
        raise ValueError(
            f"expected samples that {load.name} takes, got {shape} ({why}), try another {option}"
        ) from error
    return load


@contextmanager
def _current_directory() -> Iterator[None]:
    """Modules of the current directory can be imported, as under `python -m`; a console script does not see them."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def sides(text: str) -> tuple[int, ...]:
    """The sizes in "3x224x224".

    Raises:
        ValueError: it names none.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ValueError(f"expected sizes joined by x, got {text!r}, try 3x224x224")
    return tuple(map(int, text.split("x")))


def mean_square(output: Any) -> Tensor:
    """The mean of the squares of all tensors with a gradient: a loss for any output."""
    floats = [each for each in tensors(output) if each.is_floating_point() and each.requires_grad]
    if not floats:
        raise ValueError(f"expected a network that returns tensors with a gradient, got {type(output).__name__}")
    return sum((each.float().square().mean() for each in floats), torch.zeros((), device=floats[0].device))
