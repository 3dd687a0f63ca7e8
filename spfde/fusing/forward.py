"""Stands in for the forward of one module: the same computation, fused, and the same with a residual added to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spfde._modules import any_global_hook
from spfde.fusing import residual
from spfde.fusing.chains import Call, rewrite
from spfde.fusing.epilogue import FUNCTIONS, hooked
from spfde.fusing.layers import LayerCall, merge
from spfde.fusing.reads import built_of
from spfde.fusing.trace import Traced, trace
from spfde.nn.norm import ADDITIONS, FusedNormAct2d


@dataclass(frozen=True)
class Rewritten:
    """A rewritten forward, the norms and sparse layers it calls, the modules it calls with an addition and without.

    unchanged: whether what it has read still is as it was, None where it has read nothing. useful: whether it differs
    from the module's own.
    """

    function: Callable[..., Any]
    unchanged: Callable[[nn.Module], bool] | None
    norms: tuple[Call, ...]
    layers: tuple[LayerCall, ...]
    added: tuple[residual.Added, ...]
    called: tuple[nn.Module, ...]
    useful: bool


# By mode (dropout and the like are traced as they are in it) and by what is done with a residual, "" for none.
Key = tuple[bool, str]


class FusedForward:
    """The rewritten forwards of `module`, for each of its two modes: its own, and those that add a residual to it.

    It lives in the instance's `__dict__`, so the module keeps its class, children and state_dict. The functions hold no
    module, so that one that is replaced later is freed. They follow from the class's forward and are never saved: what
    pickle loads makes them anew at its first call.
    """

    def __init__(self, module: nn.Module, recompute: bool, rewritten: Mapping[Key, Rewritten]) -> None:
        """`rewritten`: by `rewritten_forwards`, with the same arguments."""
        self.module, self.recompute = module, recompute
        self.functions = _functions(rewritten)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        unchanged, function = self.functions[self.module.training, ""]
        if holds(unchanged, self.module):
            return function(self.module, *args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedForward:
        other = object.__new__(FusedForward)
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "recompute": self.recompute}

    def __getattr__(self, name: str) -> Any:
        if name == "__code__":  # of a forward, as torch.export's non-strict tracing asks for it
            return type(self.module).forward.__code__
        # Only after pickle, which has completed the module by the time someone asks.
        if name != "functions":
            raise AttributeError(name)
        inner = {m: vars(m)["forward"].functions for m in self.module.modules() if m is not self.module and is_fused(m)}
        self.functions = _functions(rewritten_forwards(self.module, self.recompute, inner))
        return self.functions


def is_fused(module: nn.Module) -> bool:
    """Whether the module's forward is a rewritten one."""
    return isinstance(vars(module).get("forward"), FusedForward)


def plus(module: nn.Module, function: str, other: Any, *args: Any) -> Any:
    """Module(*args) + other, which the module's own last call adds if it can and nobody looks at what it returns.

    function: one of `ADDITIONS`.
    """
    if not torch.compiler.is_compiling() and isinstance(other, Tensor) and is_fused(module):
        adding = module.forward.functions.get((module.training, function))
        if adding is not None and not (hooked(module) or module._compiled_call_impl or any_global_hook()):
            unchanged, add = adding
            if holds(unchanged, module):
                return add(module, other, *args)
    return FUNCTIONS[function](module(*args), other)


def rewritten_forwards(
    module: nn.Module, recompute: bool, inner: Mapping[nn.Module, Container[Key]]
) -> dict[Key, Rewritten]:
    """All that stand in for the module's forward, but those that would do no more than add the residual in the end.

    inner: of which the modules inside have one. Raises Untraceable: the forward must not be replaced.
    """
    rewritten = {}
    for mode in (False, True):
        traced = trace(module, mode)
        for function in (*ADDITIONS, ""):
            made = _rewritten(traced, module, function, recompute, inner)
            if made is not None:
                rewritten[mode, function] = made
    return rewritten


def holds(unchanged: Callable[[nn.Module], bool] | None, module: nn.Module) -> bool:
    """Whether what a trace has read still is as it was."""
    try:
        return unchanged is None or unchanged(module)
    except (AttributeError, KeyError):  # it is gone
        return False


def _functions(rewritten: Mapping[Key, Rewritten]) -> dict[Key, tuple[Callable[..., Any] | None, Callable[..., Any]]]:
    return {key: (made.unchanged, made.function) for key, made in rewritten.items()}


def _rewritten(
    traced: Traced, module: nn.Module, function: str, recompute: bool, inner: Mapping[nn.Module, Container[Key]]
) -> Rewritten | None:
    graph = copy.deepcopy(traced.graph)
    if function and not residual.with_residual(graph, function):
        return None
    norms, useful = rewrite(graph, module, recompute)
    layers = merge(graph, module)
    takes = lambda a: a.module in inner and (True, a.function) in inner[a.module]  # noqa: E731
    added = residual.merge(graph, module, plus, takes)
    if function and residual.adds_apart(graph):
        return None
    called = [module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    fused = {call.norm for call in norms if "+" in call.chain}
    unchanged = built_of(_fixed(traced.graph, graph, fused, module), traced.unchanged)
    useful = useful or bool(layers) or bool(added)
    norms, layers, called = tuple(norms), tuple(layers), tuple(called)
    return Rewritten(compiled(graph), unchanged, norms, layers, added, called, useful)


def _fixed(own: fx.Graph, rewritten: fx.Graph, fused: Container[nn.Module], module: nn.Module) -> dict[str, type]:
    """What must stay as it is, type by path: activations that are no longer called, and the `fused` norms."""
    asked = {str(node.target) for node in rewritten.nodes if node.op in ("call_module", "get_attr")}
    calls = {str(node.target): module.get_submodule(str(node.target)) for node in own.nodes if node.op == "call_module"}
    kinds = {path: type(called) for path, called in calls.items() if path not in asked}
    return {**kinds, **{path: FusedNormAct2d for path, called in calls.items() if called in fused}}


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The function of the graph, whose first argument is the module."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<spfde.fuse>", "exec"), names)
    return names["forward"]
