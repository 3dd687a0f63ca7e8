"""Values of a traced forward: what is done with them becomes a graph, what is done without them is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree


class Recorded(fx.Proxy):
    """Keeps what is done in place in place: torch.fx would trace `x += y` as `x = x + y`. No key of a cache."""

    def __hash__(self) -> int:
        raise self.tracer.refuse("its forward keeps values by key")


def _in_place(function: Callable) -> Callable:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(Recorded, f"__{_name}__", _in_place(getattr(operator, _name)))


class OnlyRecorded(TorchFunctionMode):
    """Refuses calls of torch that no recorded value has a part in: their results would be constants, or random."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not any(isinstance(value, fx.Proxy) for value in _pytree.tree_leaves((args, kwargs))):
            raise self.tracer.refuse("its forward makes a tensor of its own")
        return func(*args, **(kwargs or {}))
