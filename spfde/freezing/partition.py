"""Cuts a model into blocks, front to back in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from spfde._modules import batch_size
from spfde.flops import layer_work
from spfde.freezing.block import FreezeBlock, TracedLayer
from spfde.freezing.freeze import has_mode_or_state
from spfde.freezing.trace import Call, reached, trace
from spfde.nn import SparseLinear

__all__ = ["blocks"]


def blocks(model: nn.Module, example_input: Any) -> list[FreezeBlock]:
    """The blocks of `model`, front to back by execution order.

    A module with two or more weighted layers inside (a residual block, a transformer layer) is one block.
    Around it, Sequential, ModuleList and modules that hold a list of such blocks are looked into. A weighted
    layer that stands alone starts a block of its own, and the norm, activation and pooling after it join it.
    What runs before the first composite block (the stem) belongs to that block; the last linear layer, and
    what follows the last composite block, is the head and belongs to none. A parameter that the model uses
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
    units = _units(trace(model, example_input))
    groups, head = _group(units)
    if not groups:
        raise ValueError(
            "expected a model with weighted layers in front of its last linear layer, got "
            f"{type(model).__name__} with none that ran as a module; try freeze() on the part itself"
        )
    home = _homes(groups, head)
    layers = [TracedLayer(model.get_submodule(n), work) for n, work in layer_work(model, example_input).items()]
    credited = [{id(m) for m in group.body.module.modules()} for group in groups]
    rest = tuple(layer for layer in layers if not any(id(layer.module) in ids for ids in credited))
    loose = _loose(model, example_input, groups, head)
    return [
        FreezeBlock(
            name=group.body.name,
            modules=tuple((u.name, u.module) for u in _once(group.units) if home.get(id(u.module)) == i),
            layers=tuple(layer for layer in layers if id(layer.module) in credited[i]),
            parameters=tuple(p for p, owner in loose if owner is group),
            rest=rest,
        )
        for i, group in enumerate(groups)
    ]


@dataclass(eq=False)
class _Group:
    """A block in the making: the unit it is named after, and all that is frozen with it."""

    body: Call
    units: list[Call]


def _units(root: Call) -> list[Call]:
    """What ran, at the level at which it is grouped: containers and wrappers replaced by what they ran."""
    units = list(_expand(root))
    while (wrapper := _wrapper(units)) is not None:
        at = units.index(wrapper)
        units[at : at + 1] = _expand(wrapper)
    return units


def _expand(call: Call) -> Iterator[Call]:
    for inner in call.inner:
        if _is_chain(inner.module) or _holds_stack(inner.module):
            yield from _expand(inner)
        else:
            yield inner


def _wrapper(units: list[Call]) -> Call | None:
    """The one unit that holds every weighted layer but the head, if it ran any inside."""
    weighted = [u for u in units if _weights(u.module)]
    if len(weighted) == 2 and _is_linear(weighted[1].module):
        weighted.pop()
    if len(weighted) == 1 and any(_weights(inner.module) for inner in weighted[0].inner):
        return weighted[0]
    return None


def _group(units: Sequence[Call]) -> tuple[list[_Group], list[Call]]:
    """Groups of consecutive units, and the units of the head."""
    weights = [_weights(u.module) for u in units]
    weighted = [i for i, count in enumerate(weights) if count]
    end = len(units)
    if weighted and _is_linear(units[weighted[-1]].module):
        end = weighted.pop()
    last = weighted[-1] if weighted else end
    if weighted and weights[last] > 1:
        end = last + 1
    first_composite = next((i for i in weighted if weights[i] > 1), -1)
    groups: list[_Group] = []
    waiting: list[Call] = []
    for i, unit in enumerate(units[:end]):
        if i < first_composite or not (groups or weights[i]):
            waiting.append(unit)
        elif weights[i]:
            groups.append(_Group(unit, [*waiting, unit]))
            waiting = []
        else:
            groups[-1].units.append(unit)
    return groups, [*waiting, *units[end:]]


def _homes(groups: Sequence[_Group], head: Sequence[Call]) -> dict[int, int]:
    """Index of the group that owns a module (by id); the head's is len(groups).

    A module with nothing to freeze that serves two groups (one ReLU for a whole network) has no owner.

    Raises:
        ValueError: a module with weights, statistics or dropout serves two groups.
    """
    home: dict[int, int] = {}
    shared: set[int] = set()
    for i, units in enumerate([*(g.units for g in groups), head]):
        for unit in units:
            for name, m in unit.module.named_modules(prefix=unit.name):
                if home.setdefault(id(m), i) == i:
                    continue
                if has_mode_or_state(m):
                    raise ValueError(
                        f"expected a module to run in one block only, got {name!r} in "
                        f"{_title(groups, home[id(m)])} and again in {_title(groups, i)}; "
                        "try one module per place"
                    )
                shared.add(id(m))
    return {key: i for key, i in home.items() if key not in shared}


def _loose(
    model: nn.Module,
    example_input: Any,
    groups: Sequence[_Group],
    head: Sequence[Call],
) -> list[tuple[tuple[str, nn.Parameter], _Group]]:
    """Trainable parameters that no unit owns, each with the first group whose input depends on it."""
    owned = {id(p) for units in (*(g.units for g in groups), head) for u in units for p in u.module.parameters()}
    loose = [(name, p) for name, p in model.named_parameters() if id(p) not in owned and p.requires_grad]
    owner = {id(u.module): group for group in groups for u in group.units if _weights(u.module)}
    modules = [u.module for group in groups for u in _once(group.units) if id(u.module) in owner]
    found = []
    for name, p in loose:
        hit = reached(model, example_input, [p], modules)
        if hit:
            found.append(((name, p), owner[id(hit[0])]))
    return found


def _weights(module: nn.Module) -> int:
    """Number of weighted layers inside: modules with a parameter of their own of two or more dimensions."""
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _is_linear(module: nn.Module) -> bool:
    """Whether the only weighted layer inside is a linear one, dense or sparse."""
    return _weights(module) == 1 and any(isinstance(m, nn.Linear | SparseLinear) for m in module.modules())


def _is_chain(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain or isinstance(module, nn.ModuleList)


def _holds_stack(module: nn.Module) -> bool:
    """Whether a child of `module` is a list of two or more composite modules (an encoder's layers)."""
    lists = [c for c in module.children() if isinstance(c, nn.Sequential | nn.ModuleList | nn.ModuleDict)]
    return any(sum(_weights(m) > 1 for m in c.children()) > 1 for c in lists)


def _once(units: Iterable[Call]) -> list[Call]:
    return list({id(u.module): u for u in reversed(list(units))}.values())[::-1]


def _title(groups: Sequence[_Group], index: int) -> str:
    return f"block {groups[index].body.name!r}" if index < len(groups) else "the head"


def _check(model: nn.Module, example_input: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module as model, got {type(model).__name__}; try blocks(model, example_input)")
    batch_size(example_input)
