"""Stands in for the forward of one module: the same computation with its norms fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from spfde.fusing.chains import Call, rewrite, trace
from spfde.fusing.layers import LayerCall, merge


class FusedForward:
    """The rewritten forward of `module`, one function for each of its two modes.

    It lives in the instance's `__dict__`, so the module keeps its class, children and state_dict. The functions follow
    from the class's forward and are never saved: what pickle loads makes them anew at its first call.
    """

    def __init__(self, module: nn.Module, recompute: bool) -> None:
        """Raises Untraceable: the forward must not be replaced."""
        self.module, self.recompute = module, recompute
        vars(self).update(_made(module, recompute))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._functions[self.module.training](self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedForward:
        other = object.__new__(FusedForward)
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "recompute": self.recompute}

    def __getattr__(self, name: str) -> Any:
        # Only after pickle, which has completed the module by the time someone asks.
        if name not in ("_functions", "calls", "layers", "useful"):
            raise AttributeError(name)
        vars(self).update(_made(self.module, self.recompute))
        return vars(self)[name]


def _made(module: nn.Module, recompute: bool) -> dict[str, Any]:
    """The forward for each mode (dropout and the like are traced as they are in it).

    Also the calls of norms and sparse layers in training, and whether the forward then differs from the module's own.
    """
    functions: dict[bool, Callable] = {}
    calls: list[Call] = []
    layers: list[LayerCall] = []
    useful = False
    before = module.training
    try:
        for mode in (False, True):
            module.training = mode  # not train(): what is inside stays as it is
            graph = trace(module)
            calls, useful = rewrite(graph, module, recompute)
            layers = merge(graph, module)
            functions[mode] = _compiled(graph)
    finally:
        module.training = before
    return {"_functions": functions, "calls": calls, "layers": layers, "useful": useful or bool(layers)}


def _compiled(graph: fx.Graph) -> Callable:
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<spfde.fuse>", "exec"), names)
    return names["forward"]
