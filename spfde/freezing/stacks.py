"""Stacks: containers whose members run one behind the other, the layers of a transformer or the blocks of a stage."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from spfde.flops import LOOKUPS
from spfde.freezing.trace import Call, reached

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Stacks:
    """The stacks of a model. inside: all modules in one; innermost: those in one whose members hold no stack."""

    containers: frozenset[nn.Module]
    inside: frozenset[nn.Module]
    innermost: frozenset[nn.Module]

    def around(self, module: nn.Module) -> bool:
        """Whether a stack is the module or in it."""
        return any(m in self.containers for m in module.modules())


def find_stacks(model: nn.Module, example_input: Any, root: Call) -> Stacks:
    """The containers of two or more composite members of which a later one depends on the first one that runs.

    Experts or branches side by side are no stack. root: what ran, `trace(model, example_input)`; the model runs once
    more for each container in question.
    """
    # The earlier a module ran first, the larger its number.
    order = {call.module: i for i, call in enumerate(reversed(list(root.all())))}
    found: set[nn.Module] = set()
    for container in model.modules():
        if not isinstance(container, CONTAINERS):
            continue
        began = {
            m: max((order[each] for each in m.modules() if each in order), default=-1) for m in container.children()
        }
        members = sorted((m for m, when in began.items() if when >= 0 and weights(m) > 1), key=lambda m: -began[m])
        if len(members) < 2:
            continue
        first, *later = members
        inner = {each for m in later for each in m.modules()} - set(first.modules())
        if reached(model, example_input, first.parameters(), inner):
            found.add(container)
    holders = {m: sum(each in found for each in m.modules()) for m in found}
    return Stacks(
        frozenset(found),
        frozenset(each for m in found for each in m.modules()),
        frozenset(each for m in found if holders[m] == 1 for each in m.modules()),
    )


def weights(module: nn.Module, tied: Collection[nn.Module] = frozenset()) -> int:
    """Number of weighted layers inside: modules with a parameter of their own of two or more dimensions.

    Not counted are lookups, which multiply nothing, and those in `tied`, which never freeze.
    """
    own = (m for m in module.modules() if m not in tied and not isinstance(m, LOOKUPS))
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in own)
