"""The graph of a forward with its frozen parts in place of the calls of them, and frozen layers as chains."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import fx, nn

from spfde.freezing.prefix.folded import CONVOLUTIONS
from spfde.freezing.prefix.kinds import FOLDABLE, FoldedLayer, folded_of, obstacle
from spfde.freezing.prefix.steps import Chain, Step
from spfde.fusing import chains, layers
from spfde.fusing.epilogue import hooked
from spfde.fusing.forward import is_fused
from spfde.fusing.stand_in import Untraceable, join
from spfde.fusing.trace import Traced, trace
from spfde.kernels.norm_act import ACTIVATIONS
from spfde.models.resnet import PadShortcut

Check = tuple[str, Callable[[nn.Module], bool]]


class Traces:
    """The graphs of modules' own forwards by module and mode, each traced once, or why there is none."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, dict[bool, Traced | str]] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, training: bool) -> Traced | str:
        kept = self._kept.setdefault(module, {})
        if training not in kept:
            try:
                kept[training] = trace(module, training)
            except Untraceable as problem:
                kept[training] = str(problem)
        return kept[training]


@dataclass
class Rewriting:
    """A graph in the making: of `module`, with `frozen` modules, but for `whole` ones, in place of their calls.

    Where some are whole, what they return is kept: an image's result then does not depend on its batch.
    inlined: modules whose calls are gone, by path. folded: by layer, kept from one rewriting to the next.
    """

    graph: fx.Graph
    module: nn.Module
    frozen: Collection[nn.Module]
    whole: Collection[nn.Module]
    traces: Traces
    folded: dict[nn.Module, FoldedLayer]
    checks: list[Check] = field(default_factory=list)
    inlined: list[str] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    reasons: dict[nn.Module, str] = field(default_factory=dict)

    # ---- calls of frozen modules ----

    def inline(self) -> None:
        """Puts the graphs of frozen modules, and of plain Sequentials around some, in place of their calls."""
        waiting = list(self.graph.nodes)
        while waiting:
            waiting += self._inline_at(waiting.pop(0))

    def _inline_at(self, node: fx.Node) -> list[fx.Node]:
        if node.op != "call_module" or node.kwargs:
            return []
        path = str(node.target)
        called = self.module.get_submodule(path)
        if self._does_nothing(called) and _is_plain(called) and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])
            self.graph.erase_node(node)
            return []
        if called in self.whole or not any(m in self.frozen for m in called.modules()) or not _is_plain(called):
            return []
        if called not in self.frozen and type(called) is not nn.Sequential:
            return []
        if next(called.children(), None) is None:
            return []
        traced = self.traces(called, called.training)
        if isinstance(traced, str):
            self.reasons[called] = traced
            return []
        given = [inner for inner in traced.graph.nodes if inner.op == "placeholder"]
        if len(given) != len(node.args) or not isinstance(traced.graph.output_node().args[0], fx.Node):
            return []
        copied: dict[fx.Node, fx.Node] = dict(zip(given, node.args, strict=True))
        with self.graph.inserting_before(node):
            result = self.graph.graph_copy(traced.graph, copied)
        made = [new for old, new in copied.items() if old.op != "placeholder"]
        for new in made:
            if new.op in ("call_module", "get_attr"):
                new.target = join(path, str(new.target))
        node.replace_all_uses_with(result)
        self.graph.erase_node(node)
        self.inlined.append(path)
        if traced.unchanged is not None:
            self.checks.append((path, traced.unchanged))
        return made

    def _does_nothing(self, called: nn.Module) -> bool:
        return type(called) is nn.Identity or (
            type(called) is nn.Dropout and called in self.frozen and not called.training
        )

    # ---- frozen layers ----

    def fold(self) -> None:
        """Makes chains of frozen layers and what follows them."""
        links: dict[fx.Node, _Link] = {}
        claimed: set[fx.Node] = set()  # an addition of two layers goes with the first
        for node in list(self.graph.nodes):
            link = self._link(node, claimed)
            if link is not None:
                links[link.end] = link
                claimed.update(link.nodes)
        taken: set[fx.Node] = set()
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for link in sorted(links.values(), key=lambda link: order[link.end], reverse=True):
            if link.end in taken:
                continue
            group = sorted(self._group(link, links), key=lambda link: order[link.end])
            taken.update(each.end for each in group)
            if len(group) > 1 or len(link.nodes) > 1:
                self._replace(group)

    def _link(self, node: fx.Node, claimed: Collection[fx.Node]) -> _Link | None:
        """The frozen layer that the node calls with all that can follow it in one pass; None if it is none."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            return None
        layer = self._called(node)
        if layer not in self.frozen or layer in self.whole or not isinstance(layer, (*FOLDABLE, PadShortcut)):
            return None
        if type(layer) is PadShortcut:
            return _Link(layer, node.args[0], [node]) if _is_plain(layer) else None
        if reason := obstacle(layer):
            self.reasons[layer] = reason
            return None
        link = _Link(layer, node.args[0], [node])
        reader = chains.only_user(node)
        if (
            reader is not None
            and isinstance(layer, CONVOLUTIONS)
            and self._norm_fits(reader, node)
            and self._may_join(node, reader, link.nodes)
        ):
            link.norm = self._called(reader)
            link.nodes.append(reader)
        addition = chains.addition_to(link.end)
        if addition is not None and addition.node not in claimed and self._may_join(node, addition.node, link.nodes):
            link.residual, link.add = addition.other, addition.function
            link.nodes.append(addition.node)
        follower = chains.only_user(link.end)
        act = "" if follower is None else self._activation(follower, link)
        if act and not self._stays(follower) and self._may_join(node, follower, link.nodes):
            link.act = act
            link.nodes.append(follower)
        return link

    def _activation(self, node: fx.Node, link: _Link) -> str:
        found = chains.activation(node, link.end, self.module)
        found = found if found in ACTIVATIONS else ""  # those at the end of a product
        if found or isinstance(link.layer, CONVOLUTIONS):
            return found
        return "gelu" if layers.activation(node, link.end, self.module) == "gelu" else ""

    def _norm_fits(self, node: fx.Node, conv: fx.Node) -> bool:
        if not chains.is_norm(node, self.module) or node.args != (conv,) or node.kwargs:
            return False
        norm = self._called(node)
        if norm not in self.frozen or norm in self.whole or norm.training or norm.running_mean is None:
            return False
        if reason := chains.obstacle(norm):
            self.reasons[norm] = reason
            return False
        return "forward" not in vars(norm) and norm.num_features == self._called(conv).out_channels

    def _group(self, last: _Link, links: dict[fx.Node, _Link]) -> list[_Link]:
        """The links that end in `last` and that nothing else reads."""
        group, nodes = [last], list(last.nodes)
        found = True
        while found:
            found = False
            for source in [read for link in group for read in (link.source, link.residual)]:
                link = links.get(source)
                if link is None or link in group or not all(user in nodes for user in link.end.users):
                    continue
                if self._may_join(link.nodes[0], last.end, [*nodes, *link.nodes]):
                    group.append(link)
                    nodes += link.nodes
                    found = True
        return group

    def _replace(self, group: list[_Link]) -> None:
        reads = [read for link in group for read in (link.source, link.residual) if read is not None]
        ends = {link.end for link in group}
        inputs = [read for read in dict.fromkeys(reads) if read not in ends]
        number = {node: i for i, node in enumerate([*inputs, *(link.end for link in group)])}
        steps = []
        for link in group:
            folded = self.folded.get(link.layer)
            if folded is None or folded.norm is not link.norm:
                folded = self.folded[link.layer] = folded_of(link.layer, link.norm)
            residual = None if link.residual is None else number[link.residual]
            steps.append(Step(folded, number[link.source], residual, link.add, link.act))
        chain = Chain(len(inputs), steps, steady=bool(self.whole))
        self.chains.append(chain)
        end = group[-1].end
        with self.graph.inserting_before(end):
            called = self.graph.call_function(chain, tuple(inputs))
        end.replace_all_uses_with(called)
        for dead in sorted((n for link in group for n in link.nodes), key=list(self.graph.nodes).index, reverse=True):
            self.graph.erase_node(dead)

    def _may_join(self, first: fx.Node, last: fx.Node, group: Collection[fx.Node]) -> bool:
        """Whether `group` may run as late as `last`: what runs in between changes nothing that it reads."""
        node = first.next
        while node is not last:
            if node not in group and not self._is_pure(node, self.module):
                return False
            node = node.next
        return True

    def _is_pure(self, node: fx.Node, module: nn.Module) -> bool:
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if hooked(called) or "forward" in vars(called):
                return False
            if type(called).__module__.startswith(("torch.nn.", "spfde.nn.")) and next(called.children(), None) is None:
                return not getattr(called, "inplace", False)
            traced = self.traces(called, called.training)
            return not isinstance(traced, str) and all(self._is_pure(inner, called) for inner in traced.graph.nodes)
        if node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
            operator = getattr(node.target, "__module__", "") == "_operator"
            flags = [*node.args, node.kwargs.get("inplace", False)]
            changes = (name.endswith("_") and not name.endswith("__")) or (operator and name.startswith(("i", "set")))
            return not changes and "out" not in node.kwargs and not any(flag is True for flag in flags)
        return True

    def _stays(self, node: fx.Node) -> bool:
        return node.op == "call_module" and self._called(node) in self.whole

    def _called(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))


@dataclass(eq=False)
class _Link:
    """A layer, and the nodes of it and of what follows it: up to `end`."""

    layer: nn.Module
    source: fx.Node
    nodes: list[fx.Node]
    norm: nn.Module | None = None
    residual: fx.Node | None = None
    add: str = "add"
    act: str = "none"

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward, or `spfde.fuse`'s of it, and nobody looks at it."""
    replaced = "forward" in vars(module) and not is_fused(module)
    return (
        not (replaced or hooked(module) or module._compiled_call_impl) and type(module).__call__ is nn.Module.__call__
    )
