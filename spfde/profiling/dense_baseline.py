"""Copies of a model and its optimizer to take steps with: as it is, and its dense baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde._modules import map_tensors, run, tensors
from spfde.convert.sparsify import densify
from spfde.fusing import unfuse
from spfde.nn import FusedNormAct2d, SparseLayer

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"


@dataclass(frozen=True)
class Step:
    """One training step on a model of its own, in phases. data: makes the inputs of a step."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    data: Callable[[], Any]
    loss_fn: Callable[[Any], Tensor]

    def __call__(self, phase: Callable[[str], AbstractContextManager] = lambda name: nullcontext()) -> None:
        """Takes the step, each phase of it inside `phase(name)`."""
        with phase("data"):
            inputs = self.data()
        with phase("optimizer"):
            self.optimizer.zero_grad()
        with phase("forward"):
            output = run(self.model, inputs)
        with phase("loss"):
            loss = self.loss_fn(output)
            del output
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            self.optimizer.step()


def step_of(
    model: nn.Module, optimizer: Optimizer | None, data: Callable[[], Any], loss_fn: Callable[[Any], Tensor]
) -> Step:
    """A step on a copy of the model, in training mode, with a copy of its optimizer."""
    if optimizer is None:
        model = copy.deepcopy(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, fused=True)
    else:
        model, optimizer = copy.deepcopy((model, optimizer))  # together: the copies belong to one another
    return Step("model", model.train(), optimizer, data, loss_fn)


def dense_step(step: Step, memory_format: str = CONTIGUOUS) -> Step:
    """The same step with dense weights and nothing fused; images in this memory format."""
    names = {id(p): _dense_name(name, step.model) for name, p in step.model.named_parameters()}
    dense = unfuse(densify(copy.deepcopy(step.model)))
    parameters = dict(dense.named_parameters())
    # With these, deepcopy puts the dense parameters where the optimizer has the model's. State is made anew.
    memo: dict[int, Any] = {key: parameters[name] for key, name in names.items()}
    optimizer = copy.deepcopy(step.optimizer, memo)
    optimizer.state.clear()
    data = step.data
    if memory_format == CHANNELS_LAST:
        dense = dense.to(memory_format=torch.channels_last)
        data = lambda: _channels_last(step.data())  # noqa: E731
    return Step(f"dense {memory_format}", dense, optimizer, data, step.loss_fn)


def has_dense_baseline(model: nn.Module) -> bool:
    """Whether the dense model would be another one."""
    return any(isinstance(m, SparseLayer | FusedNormAct2d) for m in model.modules())


def takes_images(inputs: Any) -> bool:
    """Whether an input is a batch of images, for which there are two memory formats."""
    return any(x.dim() == 4 for x in tensors(inputs))


def _channels_last(inputs: Any) -> Any:
    return map_tensors(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, inputs)


def _dense_name(name: str, model: nn.Module) -> str:
    """Name of a parameter in the dense model: a sparse layer's values are the dense one's weight."""
    owner, _, own = name.rpartition(".")
    if own == "values" and isinstance(model.get_submodule(owner), SparseLayer):
        return f"{owner}.weight".lstrip(".")
    return name
