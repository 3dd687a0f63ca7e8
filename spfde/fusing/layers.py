"""Finds sparse layers whose only reader is a norm, an addition or an activation, and makes one call of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from spfde.fusing.activations import IN_KERNELS
from spfde.fusing.chains import addition_to, follows, is_norm, obstacle, only_user
from spfde.fusing.epilogue import act_of, call_with_epilogue, hooked
from spfde.kernels.recompute import without_saving
from spfde.nn import SparseConv2d, SparseLinear

KINDS: dict[type[nn.Module], str] = {SparseConv2d: "conv", SparseLinear: "linear"}


@dataclass(frozen=True)
class LayerCall:
    """One layer called by a forward, and what its kernel does where that is Triton's, with a norm when it is frozen."""

    layer: nn.Module
    chain: str


@dataclass(frozen=True)
class _End:
    """What follows a layer, up to the node `last`, as `call_with_epilogue` takes it."""

    last: fx.Node
    then: fx.Node | str
    rest: tuple[Any, ...]
    chain: tuple[str, ...]


def merge(graph: fx.Graph, module: nn.Module) -> list[LayerCall]:
    """Makes one call of every such pair of the graph in place. Norms are fused already, see `chains.rewrite`."""
    return [call for node in list(graph.nodes) for call in _merge_at(node, graph, module)]


def _merge_at(node: fx.Node, graph: fx.Graph, module: nn.Module) -> Iterator[LayerCall]:
    name, source, again = _layer_call(node, module)
    reader = only_user(node)
    if not name or reader is None or not _may_move(node, source, reader, module):
        return
    layer = module.get_submodule(name)
    with graph.inserting_before(reader):
        end = _end(node, reader, layer, graph, module)
        if end is None:
            return
        called = graph.get_attr(name) if again is None else node.args[0]
        merged = graph.call_function(call_with_epilogue, (called, source, end.then, end.rest, again))
    end.last.replace_all_uses_with(merged)
    for dead in dict.fromkeys((end.last, reader, node)):
        graph.erase_node(dead)
    yield LayerCall(layer, "+".join((KINDS[type(layer)], *end.chain)))


def _layer_call(node: fx.Node, module: nn.Module) -> tuple[str, fx.Node | None, bool | None]:
    """The name of the sparse layer that the node calls, its input, and whether that is made again and how."""
    again = None
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        name, source = str(node.target), node.args[0]
    elif node.target is without_saving:
        name, source, again = str(node.args[0].target), node.args[1], node.args[2]
    else:
        return "", None, None
    layer = module.get_submodule(name)
    fits = type(layer) in KINDS and not hooked(layer) and isinstance(source, fx.Node)
    return (name, source, again) if fits else ("", None, None)


def _end(node: fx.Node, reader: fx.Node, layer: nn.Module, graph: fx.Graph, module: nn.Module) -> _End | None:
    """What the kernels can end with, None if they cannot with what reads the layer; modules are made arguments."""
    addition = addition_to(node)
    if addition is not None:
        follower = only_user(reader)
        act = "" if follower is None else activation(follower, reader, module)
        if not act:
            return _End(reader, addition.function, (addition.other,), ("add",))
        return _End(follower, addition.function, (addition.other, _argument(follower, graph)), ("add", act))
    if is_norm(reader, module):
        chain = _norm_chain(reader, node, layer, module)
        return _End(reader, _argument(reader, graph), tuple(reader.args[1:]), chain) if chain else None
    act = activation(reader, node, module)
    return _End(reader, _argument(reader, graph), (), (act,)) if act else None


def _norm_chain(reader: fx.Node, node: fx.Node, layer: nn.Module, module: nn.Module) -> tuple[str, ...]:
    if not reader.args or reader.args[0] is not node or node in reader.args[1:] or reader.kwargs:
        return ()
    if type(layer) is not SparseConv2d or obstacle(_called(reader, module)):
        return ()
    rest = reader.args[1:]
    residual, act = (*rest, *(None, "none")[len(rest) :])[:2]
    added = [] if residual is None else ["add"]
    return ("norm", *added, *([] if act == "none" else [act])) if isinstance(act, str) else ()


def activation(reader: fx.Node, value: fx.Node, module: nn.Module) -> str:
    """The activation of `value` that the node is, empty if it is none that the kernels have."""
    if reader.args != (value,):
        return ""
    if reader.op == "call_module":
        called = _called(reader, module)
        return "" if hooked(called) or reader.kwargs else act_of(called)
    return _function(reader).removesuffix("_")


def _argument(node: fx.Node, graph: fx.Graph) -> fx.Node | str:
    """What the node calls, as `call_with_epilogue` takes it."""
    return graph.get_attr(str(node.target)) if node.op == "call_module" else _function(node)


def _function(node: fx.Node) -> str:
    """The activation, as `FUNCTIONS` names it, that a call of a function or method is; empty if none."""
    if node.op not in ("call_function", "call_method"):
        return ""
    if node.target is F.gelu:
        return "" if node.kwargs else "gelu"
    act = IN_KERNELS.get(node.target, "")
    changes = node.kwargs.get("inplace", str(getattr(node.target, "__name__", node.target)).endswith("_"))
    if not act or node.kwargs.keys() - {"inplace"} or not isinstance(changes, bool):
        return ""
    return f"{act}_" if changes else act


def _may_move(node: fx.Node, source: fx.Node | None, reader: fx.Node, module: nn.Module) -> bool:
    """Whether the layer may run as late as its reader: nothing in between can change what it reads."""
    if follows(node, reader):
        return True
    if source is None or only_user(source) is not node:
        return False
    return source.target is call_with_epilogue or (is_norm(source, module) and not obstacle(_called(source, module)))


def _called(node: fx.Node, module: nn.Module) -> nn.Module:
    return module.get_submodule(str(node.target))
