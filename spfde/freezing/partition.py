"""Cuts a model into blocks, front to back in the order in which they run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from spfde._modules import batch_size
from spfde.flops import LOOKUPS, layer_work
from spfde.freezing.block import FreezeBlock, TracedLayer
from spfde.freezing.stacks import Stacks, find_stacks, weights
from spfde.freezing.trace import Call, reached, trace, upstream
from spfde.nn import SparseLinear

__all__ = ["blocks"]


def blocks(model: nn.Module, example_input: Any) -> list[FreezeBlock]:
    """The blocks of `model`, front to back by execution order.

    A module with two or more weighted layers inside (a residual block, a transformer layer) is one block.
    Around it, Sequential, ModuleList and modules that hold, at any depth, a list of two or more such blocks that run
    one behind the other are looked into. A weighted layer that stands alone starts a block of its own, and the norm,
    activation and pooling after it join it. What runs before the first composite block (the stem) belongs to that
    block; what lies outside and behind the lists, linear layers at their end, or without a list the last linear layer
    and what follows the last composite block, is the head and belongs to none. A parameter that the model uses
    outside of any block (a position embedding) belongs to the first block whose input depends on it.

    The model runs once in eval mode without gradients (once more for each parameter used outside any block);
    modes, hooks, gradients flags and random state are as before afterwards.

    Args:
        model: any model, dense or sparse.
        example_input: a batch [N, ...]; a tuple stands for positional arguments, a mapping for keywords. N = 1 is
            enough.

    Raises:
        TypeError: `model` is not a module, or `example_input` holds no tensor.
        ValueError: the model has no block, or one that runs in two places.
    """
    _check(model, example_input)
    root = trace(model, example_input)
    stacks = find_stacks(model, example_input, root)
    units = _units(root, stacks)
    tied = _tied(model, _group(units, stacks)[0])
    groups, head = _group(units, stacks, tied)
    if not groups:
        raise ValueError(
            "expected a model with weighted layers in front of its last linear layer, got "
            f"{type(model).__name__} with none that ran as a module; try freeze() on the part itself"
        )
    home, active = _homes(groups, head)
    active |= tied
    loose = _loose(model, example_input, groups, head)
    parts = [
        FreezeBlock(
            name=group.body.name,
            modules=tuple(
                (u.name, u.module)
                for u in _once(group.units)
                if home[id(u.module)] == i and not active.issuperset(u.module.modules())
            ),
            parameters=tuple(p for p, owner in loose if owner is group),
            active=frozenset(active),
        )
        for i, group in enumerate(groups)
    ]
    layers = _layers(model, example_input, root, parts)
    credited = [set(group.body.module.modules()) - active for group in groups]
    rest = tuple(layer for layer in layers if not any(layer.module in own for own in credited))
    return [
        replace(part, layers=tuple(layer for layer in layers if layer.module in own), rest=rest)
        for part, own in zip(parts, credited, strict=True)
    ]


@dataclass(eq=False)
class _Group:
    """A block in the making: the unit it is named after, and all that is frozen with it."""

    body: Call
    units: list[Call]


def _units(root: Call, stacks: Stacks) -> list[Call]:
    """What ran, at the level at which it is grouped: containers and wrappers replaced by what they ran."""
    units = list(_expand(root, stacks))
    while (wrapper := _wrapper(units)) is not None:
        at = units.index(wrapper)
        units[at : at + 1] = _expand(wrapper, stacks)
    return units


def _expand(call: Call, stacks: Stacks) -> Iterator[Call]:
    for inner in call.inner:
        if _is_chain(inner.module) or stacks.around(inner.module):
            yield from _expand(inner, stacks)
        else:
            yield inner


def _wrapper(units: list[Call]) -> Call | None:
    """The one unit that holds every weighted layer but linear ones behind it, if it ran any inside."""
    weighted = [u for u in units if weights(u.module)]
    while len(weighted) > 1 and _is_linear(weighted[-1].module):
        weighted.pop()
    if len(weighted) == 1 and any(weights(inner.module) for inner in weighted[0].inner):
        return weighted[0]
    return None


def _group(
    units: Sequence[Call], stacks: Stacks, tied: Collection[nn.Module] = frozenset()
) -> tuple[list[_Group], list[Call]]:
    """Groups of consecutive units, and the units of the head.

    A unit whose weights are all tied or looked up starts no group: it waits for the next one.
    """
    counts = [weights(u.module) for u in units]
    weighted = [i for i, count in enumerate(counts) if count]
    end = _end(units, weighted, stacks)
    weighted = [i for i in weighted if i < end]
    first_composite = next((i for i in weighted if counts[i] > 1), -1)
    groups: list[_Group] = []
    waiting: list[Call] = []
    for i, unit in enumerate(units[:end]):
        if i >= first_composite and weights(unit.module, tied):
            groups.append(_Group(unit, [*waiting, unit]))
            waiting = []
        elif waiting or not groups or _looks_up(unit.module) or counts[i]:
            waiting.append(unit)
        else:
            groups[-1].units.append(unit)
    return groups, [*waiting, *units[end:]]


def _end(units: Sequence[Call], weighted: Sequence[int], stacks: Stacks) -> int:
    """Index of the first unit of the head, given those of the weighted units.

    Where the model has stacks the head is what lies outside and behind them and the linear layers at their end,
    elsewhere the last linear layer. What has no weights behind a weighted layer that stands alone goes with that layer.
    """
    left = [i for i in weighted if units[i].module in stacks.inside]
    if left:
        while len(left) > 1 and _ends_linear(units[left[-1]].module, stacks):
            left.pop()
    else:
        left = list(weighted)
        if left and _is_linear(units[left[-1]].module):
            left.pop()
    if left and weights(units[left[-1]].module) > 1:
        return left[-1] + 1
    return next((i for i in weighted if not left or i > left[-1]), len(units))


def _homes(groups: Sequence[_Group], head: Sequence[Call]) -> tuple[dict[int, int], set[nn.Module]]:
    """Index of the group that owns a module (by id), the head's being len(groups), and what no group can own.

    A module that serves two groups has no owner if it has nothing to freeze (one ReLU or one dropout for a whole
    network), only looks up (the embedding of two stacks), or is part of one and also called by itself.

    Raises:
        ValueError: any other module with weights or statistics serves two groups.
    """
    places = [(i, unit) for i, units in enumerate([*(g.units for g in groups), head]) for unit in units]
    inner = {m for _, unit in places for m in unit.module.modules() if m is not unit.module}
    called_too = inner & {unit.module for _, unit in places}
    home: dict[int, int] = {}
    active: set[nn.Module] = set()
    for i, unit in places:
        for name, m in unit.module.named_modules(prefix=unit.name):
            if home.setdefault(id(m), i) == i or m in active:
                continue
            if m not in called_too and _holds_state(m):
                raise ValueError(
                    f"expected a module to run in one block only, got {name!r} in {_title(groups, home[id(m)])} and "
                    f"again in {_title(groups, i)}; try the blocks of a part that two inputs go through "
                    "(blocks(model.backbone, input)), or one module per place"
                )
            active.update(m.modules())
    return home, active


def _tied(model: nn.Module, groups: Sequence[_Group]) -> set[nn.Module]:
    """Modules with a parameter of their own that a module of another group, or of none, has too."""
    home = {m: i for i, group in enumerate(groups) for unit in group.units for m in unit.module.modules()}
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for m in model.modules():
        for p in m.parameters(recurse=False):
            holders.setdefault(p, []).append(m)
    return {m for own in holders.values() if len({home.get(m) for m in own}) > 1 for m in own}


def _loose(
    model: nn.Module,
    example_input: Any,
    groups: Sequence[_Group],
    head: Sequence[Call],
) -> list[tuple[tuple[str, nn.Parameter], _Group]]:
    """Trainable parameters that no unit owns, each with the first group whose input depends on it."""
    owned = {id(p) for units in (*(g.units for g in groups), head) for u in units for p in u.module.parameters()}
    loose = [(name, p) for name, p in model.named_parameters() if id(p) not in owned and p.requires_grad]
    owner = {id(u.module): group for group in groups for u in group.units if weights(u.module)}
    modules = [u.module for group in groups for u in _once(group.units) if id(u.module) in owner]
    found = []
    for name, p in loose:
        hit = reached(model, example_input, [p], modules)
        if hit:
            found.append(((name, p), owner[id(hit[0])]))
    return found


def _layers(model: nn.Module, example_input: Any, root: Call, parts: Sequence[FreezeBlock]) -> list[TracedLayer]:
    """The layers that ran, in execution order, each with the freezes that save its gradients."""
    work = layer_work(model, example_input)
    ran = {call.name for call in root.all()}
    called = {name: name for name in work}  # a layer that its parent multiplies for: the module around that ran
    for name in work:
        while called[name] not in ran:
            called[name] = called[name].rpartition(".")[0]
    fixed = {p: float(front) for front, part in enumerate(parts, start=1) for p in part.trainable}
    fixed = {p: fixed.get(p, math.inf) for p in model.parameters() if p.requires_grad}
    wanted = {name: model.get_submodule(around) for name, around in called.items()}
    cut = upstream(model, example_input, fixed, set(wanted.values()))
    modules = {name: model.get_submodule(name) for name in work}
    return [
        TracedLayer(
            module=modules[name],
            traced=each,
            fixed_at=max((fixed.get(p, 0) for p in modules[name].parameters(recurse=False) if p.ndim > 1), default=0),
            cut_at=cut.get(wanted[name], 0),
        )
        for name, each in work.items()
    ]


def _looks_up(module: nn.Module) -> bool:
    """Whether an embedding is inside."""
    return any(isinstance(m, LOOKUPS) for m in module.modules())


def _holds_state(module: nn.Module) -> bool:
    """Whether anything inside has parameters or buffers, lookups left aside."""
    own = (m for m in module.modules() if not isinstance(m, LOOKUPS))
    return any(True for m in own for _ in (*m.parameters(recurse=False), *m.buffers(recurse=False)))


def _is_linear(module: nn.Module) -> bool:
    """Whether the only weighted layer inside is a linear one, dense or sparse."""
    return weights(module) == 1 and _all_linear(module)


def _all_linear(module: nn.Module) -> bool:
    return weights(module) == sum(isinstance(m, nn.Linear | SparseLinear) for m in module.modules())


def _ends_linear(module: nn.Module, stacks: Stacks) -> bool:
    """Whether a unit at the end of a stack is a head's: one linear layer, or several that are no stack's member."""
    return _is_linear(module) or (_all_linear(module) and module not in stacks.innermost)


def _is_chain(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain or isinstance(module, nn.ModuleList)


def _once(units: Iterable[Call]) -> list[Call]:
    return list({id(u.module): u for u in reversed(list(units))}.values())[::-1]


def _title(groups: Sequence[_Group], index: int) -> str:
    return f"block {groups[index].body.name!r}" if index < len(groups) else "the head"


def _check(model: nn.Module, example_input: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module as model, got {type(model).__name__}; try blocks(model, example_input)")
    batch_size(example_input)
