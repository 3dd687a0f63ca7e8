"""What every part does with modules and nests of tensors: modes that come back, random state that stays, walking."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Every module of `model` is in its own training mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module of `model` is in eval mode inside the block, and in its own again afterwards."""
    with modes_restored(model):
        for module in model.modules():
            module.training = False  # not eval(): what a subclass or a frozen module does in it would not be undone
        yield


def random_state_restored(*values: Any) -> AbstractContextManager:
    """Torch's random state is afterwards what it was, on the CPU and on the GPUs of the tensors in `values`."""
    cards = {tensor.device.index for tensor in tensors(values) if tensor.is_cuda}
    return torch.random.fork_rng(devices=sorted(cards))


def as_args(example_input: Any) -> tuple[Any, ...]:
    """The positional arguments that an example input stands for: those of a tuple, else itself."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of modules, mappings, lists, tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from tensors(getattr(value, item.name))


def inside_a_forward() -> bool:
    """Whether a module is being called, by a look at the stack: for what is slow anyway."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None
