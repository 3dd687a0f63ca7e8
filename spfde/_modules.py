"""What every part does with modules and nests of tensors: modes that come back, random state that stays, walking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parallel import DistributedDataParallel


def any_global_hook() -> bool:
    """Whether hooks are registered for every module there is: torch 2.6 has no name for the question."""
    return bool(
        hooks._global_backward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_forward_hooks
    )


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


def as_args(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an input stands for: (positional, keyword).

    A tuple stands for positional arguments, a mapping for keywords, anything else (a list too) for one argument. So a
    model whose one argument is a mapping is given ({...},).

    Raises:
        TypeError: a mapping with keys that are no names.
    """
    if isinstance(inputs, Mapping):
        odd = [key for key in inputs if not isinstance(key, str)]
        if odd:
            raise TypeError(
                f"expected a mapping of keyword arguments, got the key {odd[0]!r}, try (mapping,) for a model that "
                "takes it as its one argument"
            )
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def run(model: nn.Module, inputs: Any) -> Any:
    """What the model returns for an input, which is a tuple of arguments, a mapping of keywords, or one argument."""
    args, kwargs = as_args(inputs)
    return model(*args, **kwargs)


def map_tensors(function: Callable[[Tensor], Any], inputs: Any) -> Any:
    """An input with the function applied to its tensors: itself, or those in its tuples, lists and mappings."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(function, value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        values = [map_tensors(function, value) for value in inputs]
        return values if isinstance(inputs, list) else tuple(values)
    return inputs


def batch_size(inputs: Any) -> int:
    """The length of the first dimension of the first tensor that has one.

    Raises:
        TypeError: there is none.
    """
    sizes = (tensor.shape[0] for tensor in tensors(inputs) if tensor.dim())
    size = next(sizes, None)
    if size is None:
        raise TypeError(
            f"expected example_input to hold a batch [N, ...], got {type(inputs).__name__} without a tensor that has a "
            "dimension; try one batch of the training set"
        )
    return size


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


class Wrapper(nn.Module):
    """A handle around the model that is its `module`."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, a handle of ours around that, and torch.compile's wrapper."""
    while True:
        if isinstance(model, DistributedDataParallel | Wrapper):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


def inside_a_forward() -> bool:
    """Whether a module is being called, by a look at the stack: for what is slow anyway."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None
