"""Values of a traced forward: what is done with them becomes a graph, what is done without them is refused."""

from __future__ import annotations

import gc
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree


class Recorded(fx.Proxy):
    """Keeps what is done in place in place: torch.fx would trace `x += y` as `x = x + y`. No key of a cache."""

    def __hash__(self) -> int:
        raise self.tracer.refuse("its forward keeps values by key")


class Unsettled(Exception):
    """The forward wants the numbers themselves."""


def _in_place(function: Callable) -> Callable:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(Recorded, f"__{_name}__", _in_place(getattr(operator, _name)))


class Number(Recorded):
    """A number of a module, read when the forward runs; where the forward asks for its value, that is noted as read.

    value: what it is now. sources: the attributes that it comes from, each with path, name and value.
    """

    def __init__(self, node: fx.Node, tracer: Any, value: float, sources: frozenset[tuple[str, str, float]]) -> None:
        super().__init__(node, tracer)
        self.value, self.sources = value, sources

    def settled(self) -> Any:
        for source in self.sources:
            self.tracer.reads.attribute(*source)
        return self.value

    def __hash__(self) -> int:
        raise Unsettled("a number is the key of something")

    def __str__(self) -> str:
        return str(self.settled())

    def __format__(self, spec: str) -> str:
        return format(self.settled(), spec)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.settled(), digits)


def _settled(function: Callable) -> Callable:
    return lambda self: function(self.settled())


for _name, _function in {
    "bool": bool, "int": int, "float": float, "complex": complex, "index": operator.index, "abs": abs,
    "trunc": math.trunc, "floor": math.floor, "ceil": math.ceil, "repr": repr,
}.items():  # fmt: skip
    setattr(Number, f"__{_name}__", _settled(_function))


def computed(function: Callable, args: tuple[Any, ...]) -> tuple[Any, frozenset[tuple[str, str, float]]] | None:
    """The value and the sources of an operator's result, None where not all is a number."""
    numbers = [a for a in args if isinstance(a, Number)]
    alone = all(type(a) in (int, float, Number) for a in args)
    if not numbers or not alone or getattr(function, "__module__", "") != "_operator":
        return None
    value = function(*(a.value if isinstance(a, Number) else a for a in args))
    return value, frozenset().union(*(a.sources for a in numbers))


class OnlyRecorded(TorchFunctionMode):
    """Refuses calls of torch that no recorded value has a part in: their results would be constants, or random."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not any(isinstance(value, fx.Proxy) for value in _pytree.tree_leaves((args, kwargs))):
            raise self.tracer.refuse("its forward makes a tensor of its own")
        return func(*args, **(kwargs or {}))


_lock = threading.Lock()
_collected: list[bool] = []  # by each thread that is followed: whether garbage was collected when that began


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage is collected while any thread is followed: what that lets run is none of the forward's code."""
    with _lock:
        _collected.append(gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _collected.pop():  # the last to leave takes what the first one found
                gc.enable()


@contextmanager
def profiled(function: Callable[..., None]) -> Iterator[None]:
    """The function follows what code this thread reaches; whoever followed it before does so again after."""
    before = sys.getprofile()
    with _without_collection():
        sys.setprofile(function)
        try:
            yield
        finally:
            if before is None or callable(before):
                sys.setprofile(before)
            else:
                before.enable()  # cProfile, before Python 3.12
