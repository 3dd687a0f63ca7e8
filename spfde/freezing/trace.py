"""Runs a model once, leaving it as it was: what ran in which order, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spfde._modules import eval_mode, map_tensors, random_state_restored, run, tensors


@dataclass(eq=False)
class Call:
    """One module's execution and, in order, those it caused."""

    name: str
    module: nn.Module
    inner: list[Call] = field(default_factory=list)

    def all(self) -> Iterator[Call]:
        """This call and all that it caused, in order."""
        yield self
        for call in self.inner:
            yield from call.all()


def trace(model: nn.Module, example_input: Any) -> Call:
    """The tree of module executions of one forward pass."""
    names = {id(m): name for name, m in model.named_modules()}
    root = Call("", model)
    running = [root]

    def enter(module: nn.Module, *_: object) -> None:
        if module is model:
            return
        call = Call(names[id(module)], module)
        running[-1].inner.append(call)
        running.append(call)

    def leave(module: nn.Module, *_: object) -> None:
        if module is not model:
            running.pop()

    with torch.no_grad(), _hooks(model.modules(), enter, leave):
        _run(model, example_input)
    return root


def reached(
    model: nn.Module,
    example_input: Any,
    parameters: Iterable[nn.Parameter],
    modules: Iterable[nn.Module],
) -> list[nn.Module]:
    """Those of `modules`, in execution order, whose input depends on one of `parameters`."""
    hit: list[nn.Module] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if any(t.requires_grad for t in tensors((args, kwargs))):
            hit.append(module)

    with torch.enable_grad(), _only_trainable(model, parameters), _hooks(modules, enter):
        _run(model, example_input)
    return hit


def upstream(
    model: nn.Module, example_input: Any, marks: Mapping[nn.Parameter, float], modules: Iterable[nn.Module]
) -> dict[nn.Module, float]:
    """For those of `modules` whose input depends on one of the parameters in `marks`, the largest mark of such."""
    known: dict[Any, float] = {}  # by node of the graph
    found: dict[nn.Module, float] = {}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        for tensor in tensors((args, kwargs)):
            if tensor.requires_grad:
                mark = marks.get(tensor, 0.0) if tensor.grad_fn is None else _largest(tensor.grad_fn, marks, known)
                found[module] = max(mark, found.get(module, 0.0))

    with torch.enable_grad(), _only_trainable(model, marks), _hooks(modules, enter):
        _run(model, example_input)
    return found


def _largest(root: Any, marks: Mapping[nn.Parameter, float], known: dict[Any, float]) -> float:
    """The largest mark of a parameter that a node of the graph comes from; `known` is looked at and added to."""
    waiting = [root]
    while waiting:
        node = waiting[-1]
        before = [each for each, _ in node.next_functions if each is not None]
        ahead = [each for each in before if each not in known]
        if ahead and node not in known:
            waiting += ahead
            continue
        waiting.pop()
        own = marks.get(node.variable, 0.0) if hasattr(node, "variable") else 0.0
        known[node] = max([own, *(known[each] for each in before)])
    return known[root]


def _run(model: nn.Module, example_input: Any) -> None:
    """One forward pass in eval mode; modes and random state are as before afterwards."""
    with eval_mode(model), random_state_restored(model, example_input):
        run(model, map_tensors(torch.Tensor.detach, example_input))


@contextmanager
def _hooks(
    modules: Iterable[nn.Module], enter: Callable[..., None], leave: Callable[..., None] | None = None
) -> Iterator[None]:
    handles = []
    try:
        for m in modules:
            handles.append(m.register_forward_pre_hook(enter, with_kwargs=True))
            if leave is not None:
                handles.append(m.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _only_trainable(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
