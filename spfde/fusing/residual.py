"""Additions to what a module returns, made by the last call of that module's own forward."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from spfde.fusing.chains import addition_to, follows, only_user
from spfde.fusing.epilogue import hooked


@dataclass(frozen=True)
class Added:
    """A module whose result a forward adds something to, by a function of `ADDITIONS`, in one call."""

    module: nn.Module
    function: str


def with_residual(graph: fx.Graph, function: str) -> bool:
    """Lets the graph take one more argument, first, and return what it returned plus that; whether it can."""
    output = graph.output_node()
    value = output.args[0]
    if not isinstance(value, fx.Node) or value.op != "call_module" or only_user(value) is not output:
        return False
    with graph.inserting_before(next(iter(graph.nodes))):
        residual = graph.placeholder("residual")
    residual.target = residual.name  # which is new, where another argument may be called so
    with graph.inserting_before(output):
        output.args = (_sum(graph, function, value, residual),)
    return True


def _sum(graph: fx.Graph, function: str, value: fx.Node, residual: fx.Node) -> fx.Node:
    """The call of which `addition_to` tells the function."""
    if function == "radd":
        return graph.call_function(operator.add, (residual, value))
    return graph.call_function(operator.iadd if function == "add_" else operator.add, (value, residual))


def adds_apart(graph: fx.Graph) -> bool:
    """Whether the addition of `with_residual` is still one: no call has taken it in."""
    return graph.output_node().args[0].target in (operator.add, operator.iadd)


def merge(
    graph: fx.Graph, module: nn.Module, plus: Callable[..., Any], takes: Callable[[Added], bool]
) -> tuple[Added, ...]:
    """Makes one call, of `plus`, of every module and the addition right after it, if the module takes a residual."""
    found = [_merge_at(node, graph, module, plus, takes) for node in list(graph.nodes) if node.op == "call_module"]
    return tuple(added for added in found if added is not None)


def _merge_at(
    node: fx.Node, graph: fx.Graph, module: nn.Module, plus: Callable[..., Any], takes: Callable[[Added], bool]
) -> Added | None:
    addition = addition_to(node)
    if addition is None or node.kwargs or not follows(node, addition.node):
        return None
    added = Added(module.get_submodule(str(node.target)), addition.function)
    if hooked(added.module) or not takes(added):
        return None
    with graph.inserting_before(node):
        called = graph.get_attr(str(node.target))
    with graph.inserting_before(addition.node):
        merged = graph.call_function(plus, (called, addition.function, addition.other, *node.args))
    addition.node.replace_all_uses_with(merged)
    for dead in (addition.node, node):
        graph.erase_node(dead)
    return added
