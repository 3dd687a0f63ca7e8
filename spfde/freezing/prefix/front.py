"""Stands in for the forwards of a model while its frozen front is one inference call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from spfde.freezing.prefix.kinds import FOLDABLE, FoldedLayer
from spfde.freezing.prefix.rewrite import Check, Rewriting, Traces
from spfde.freezing.prefix.steps import Chain
from spfde.fusing import chains, layers, residual
from spfde.fusing.forward import compiled, holds, is_fused, plus


class FrontForward:
    """A module's forward, rewritten for the mode that the module is in; another mode runs what was there before.

    checks: whether what the rewriting has read still is as it was, by path.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any], checks: tuple[Check, ...]) -> None:
        self.module, self.function, self.checks = module, function, checks
        self.training, self.before = module.training, vars(module).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if module.training == self.training and all(holds(f, module.get_submodule(path)) for path, f in self.checks):
            return self.function(module, *args, **kwargs)
        return type(module).forward(module, *args, **kwargs) if self.before is None else self.before(*args, **kwargs)


@dataclass(frozen=True)
class Front:
    """All that stands in, by module; the chains of folded layers in it, and why others are not in one."""

    forwards: dict[nn.Module, FrontForward] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()
    reasons: dict[nn.Module, str] = field(default_factory=dict)


def rewritten(
    model: nn.Module,
    frozen: Collection[nn.Module],
    whole: Collection[nn.Module],
    traces: Traces,
    folded: dict[nn.Module, FoldedLayer],
) -> Front:
    """What stands in for a model whose modules `frozen` are its front. whole: those that are still called."""
    front, found, seen = Front(), [], set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if next(module.children(), None) is None:
            continue
        if module in seen or not any(m in frozen for m in module.modules() if isinstance(m, FOLDABLE)):
            continue
        seen.add(module)
        made = _rewriting(module, frozen, whole, traces, folded)
        if isinstance(made, str):
            front.reasons[module] = made
            waiting += module.children()
            continue
        front.reasons.update(made.reasons)
        gone = {module.get_submodule(path) for path in made.inlined}
        inside = (child for around in (module, *gone) for child in around.children())
        waiting += (child for child in inside if child not in gone)
        if made.chains:
            function = compiled(made.graph)
            front.forwards[module] = FrontForward(module, function, tuple(made.checks))
            found += made.chains
    done = {step.folded.layer for chain in found for step in chain.steps}
    reasons = {module: why for module, why in front.reasons.items() if module not in done}
    return Front(front.forwards, tuple(found), reasons)


def _rewriting(
    module: nn.Module,
    frozen: Collection[nn.Module],
    whole: Collection[nn.Module],
    traces: Traces,
    folded: dict[nn.Module, FoldedLayer],
) -> Rewriting | str:
    """The graph of one module's forward with what is frozen in it, or why there is none."""
    if type(module).forward is nn.Module.forward:
        return ""
    if "forward" in vars(module) and not is_fused(module):
        return "its forward is replaced on the instance"
    traced = traces(module, module.training)
    if isinstance(traced, str):
        return traced
    made = Rewriting(copy.deepcopy(traced.graph), module, frozen, whole, traces, folded)
    if traced.unchanged is not None:
        made.checks.append(("", traced.unchanged))
    made.inline()
    made.fold()
    fused = [m for m in (module, *(module.get_submodule(path) for path in made.inlined)) if is_fused(m)]
    if made.chains and fused and not any(_is_torch_s(node, module) for node in made.graph.nodes):
        chains.rewrite(made.graph, module, any(m.forward.recompute for m in fused))  # the rest as `spfde.fuse` has it
        layers.merge(made.graph, module)
        residual.merge(made.graph, module, plus, _takes)
    return made


def _is_torch_s(node: fx.Node, module: nn.Module) -> bool:
    """Whether the node calls a norm that `spfde.fuse` has not seen."""
    return chains.is_norm(node, module) and type(module.get_submodule(str(node.target))) is nn.BatchNorm2d


def _takes(added: residual.Added) -> bool:
    return is_fused(added.module) and (True, added.function) in added.module.forward.functions
