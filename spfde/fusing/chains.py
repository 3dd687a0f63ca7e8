"""Finds norm (+ addition) (+ activation) in one module's forward and makes one call of them.

Only the module's own forward is looked at: everything it calls is a leaf. So a chain is found wherever its parts are
called by the same forward, and what is rewritten stays as small as one block.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from spfde.fusing.activations import activation, is_identity
from spfde.fusing.epilogue import hooked
from spfde.kernels.recompute import without_saving
from spfde.nn.norm import FusedNormAct2d

FUSABLE = (nn.BatchNorm2d, FusedNormAct2d)  # these very types: a subclass may do something else

_ADDITIONS = {operator.add: "add", operator.iadd: "add_", torch.add: "add", "add": "add", "add_": "add_"}


@dataclass(frozen=True)
class Call:
    """One norm called by a forward: what was fused with it, and what kept more from being fused."""

    norm: nn.Module
    chain: str
    reason: str


@dataclass(frozen=True)
class Addition:
    """An addition of `other` to a value that nothing else reads, by a function of `ADDITIONS`."""

    node: fx.Node
    function: str
    other: fx.Node


def rewrite(graph: fx.Graph, module: nn.Module, recompute: bool) -> tuple[list[Call], bool]:
    """Fuses every chain of the graph in place; returns what became of each norm, in order, and whether any was fused.

    With `recompute`, layers do not save what can be made again; to arrange for that counts as well.
    """
    calls = [_fuse_at(node, graph, module, recompute) for node in list(graph.nodes) if is_norm(node, module)]
    readers = [_without_saving(node, graph, module) for node in list(graph.nodes)] if recompute else []
    return calls, any("+" in call.chain for call in calls) or any(readers)


def obstacle(norm: nn.Module) -> str:
    """Why a norm cannot be fused whatever follows it; empty if it can."""
    if type(norm) not in FUSABLE:
        return f"{type(norm).__name__} is not nn.BatchNorm2d itself"
    return "it has hooks, which would see the fused output" if hooked(norm) else ""


def _fuse_at(node: fx.Node, graph: fx.Graph, module: nn.Module, recompute: bool) -> Call:
    norm = module.get_submodule(str(node.target))
    reason = obstacle(norm)
    if not reason and (len(node.args) != 1 or node.kwargs):
        reason = "it is called with more than its input"
    if reason:
        return Call(norm, "", reason)
    last, residual, add = node, None, "add"
    addition = addition_to(node)
    if addition is not None:
        reason = _moving_problem(node)
        if not reason:
            last, residual, add = addition.node, addition.other, addition.function
    before = last  # what the activation is given: an Identity may stand between
    idle = []
    while is_identity(follower := only_user(before), module):
        idle.append(before := follower)
    act = activation(follower, before, module) if follower is not None else ""
    if act:
        end = follower
    else:
        act, end, idle = "none", last, []
        reason = reason or _why_no_activation(before, follower, module)
    if end is node:
        return Call(norm, "norm", reason)
    with graph.inserting_before(last):
        fused = graph.call_module(str(node.target), (node.args[0], residual, act, recompute, add))
    end.replace_all_uses_with(fused)
    for dead in dict.fromkeys((end, *reversed(idle), last, node)):
        graph.erase_node(dead)
    parts = ["norm", *(["add"] if residual is not None else []), *([act] if act != "none" else [])]
    return Call(norm, "+".join(parts), reason if act == "none" else "")


def _without_saving(source: fx.Node, graph: fx.Graph, module: nn.Module) -> bool:
    """Lets the layers that read `source` call for it again in backward, unless something else saves it in any case."""
    gelu = _is_gelu(source, module)
    if not gelu and not _may_come_from_chain(source, module):
        return False
    readers = [user for user in source.users if _is_layer(user, source, module)]
    if any(user.op != "call_module" and user.op != "output" and user.target not in _ADDITIONS for user in source.users):
        return False
    for reader in readers:
        with graph.inserting_before(reader):
            layer = graph.get_attr(str(reader.target))
            reader.replace_all_uses_with(graph.call_function(without_saving, (layer, source, gelu)))
        graph.erase_node(reader)
    return bool(readers)


def _is_layer(node: fx.Node, source: fx.Node, module: nn.Module) -> bool:
    """Whether `node` is a layer that reads `source` alone; a norm saves x, which nothing makes again."""
    if node.op != "call_module" or node.args != (source,) or node.kwargs or is_norm(node, module):
        return False
    layer = module.get_submodule(str(node.target))
    return next(layer.children(), None) is None and not isinstance(layer, nn.Identity)


def _may_come_from_chain(node: fx.Node, module: nn.Module) -> bool:
    """Whether a norm may have made this value, here or in another module: seen when it is there."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return isinstance(called, FUSABLE) or next(called.children(), None) is not None
    return node.op == "placeholder"


def _is_gelu(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) is nn.GELU
    return node.target is F.gelu


def is_norm(node: fx.Node, module: nn.Module) -> bool:
    """Whether the node calls a batch norm."""
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm
    )


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one, None if there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def follows(node: fx.Node, later: fx.Node) -> bool:
    """Whether nothing is called between the two nodes."""
    between = node.next
    while between is not later and between.op == "get_attr":
        between = between.next
    return between is later


def addition_to(value: fx.Node) -> Addition | None:
    """The addition that is the only reader of `value`, if it changes nothing else."""
    node = only_user(value)
    if node is None or node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    function = _ADDITIONS.get(node.target, "")
    first, second = node.args
    if first is value:
        other = second
    else:  # in place, it would change something else
        function, other = {"add": "radd"}.get(function, ""), first
    if not function or not isinstance(other, fx.Node) or other is value:
        return None
    return Addition(node, function, other)


def _moving_problem(norm: fx.Node) -> str:
    """The norm moves behind what makes the residual: nothing may change its input in between."""
    source = norm.args[0]
    alone = isinstance(source, fx.Node) and len(source.users) == 1 and source.op != "placeholder"
    return "" if alone else "its input is also used elsewhere, so the addition stays on its own"


def _why_no_activation(last: fx.Node, follower: fx.Node | None, module: nn.Module) -> str:
    if follower is None:
        return f"its output is used in {len(last.users)} places" if last.users else "its output is not used"
    if follower.op == "output":
        return f"the forward of {type(module).__name__} ends with it"
    if follower.op == "call_module":
        called = module.get_submodule(str(follower.target))
        hooks = " with hooks" if hooked(called) else ""
        return f"followed by {type(called).__name__}{hooks}"
    return f"followed by {getattr(follower.target, '__name__', follower.target)}"
