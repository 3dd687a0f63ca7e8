"""What an optimizer, and whatever it wraps, remembers of a layer's weights: found, checked, carried along, enlarged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.index import permute


def optimizers(optimizer: Any) -> list[Any]:
    """An optimizer and all that it holds: what SAM, Lookahead, ZeroRedundancyOptimizer or Accelerate wrap."""
    found: dict[int, Any] = {}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            waiting += [inner for inner in one if _is_optimizer(inner)]
        elif _is_optimizer(one) and id(one) not in found:
            found[id(one)] = one
            waiting += [
                inner for inner in vars(one).values() if _is_optimizer(inner) or isinstance(inner, list | tuple)
            ]
    return list(found.values())


def follow(optimizer: Any, values: nn.Parameter, source: Tensor) -> None:
    """Carries what is remembered of each slot of `values` along: `source` as `spfde.sparse.index.permute` takes it."""
    for _, _, _, tensor in _aligned(optimizer, values, values.shape):
        permute(tensor, source)


def enlarge(optimizer: Any, values: nn.Parameter, before: torch.Size) -> None:
    """Gives what is remembered of each slot room for as many slots as `values` has now; new ones hold 0."""
    more = values.shape[0] - before[0]
    for _, holder, key, tensor in list(_aligned(optimizer, values, before)):
        holder[key] = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, more))


def check(optimizer: Any, layers: Mapping[str, SparseLayer]) -> None:
    """Refuses state that a move could not carry along.

    Raises:
        ValueError: it is flat, quantised, shared between slots, in no shape that tells its slots, or not kept in
            `state[parameter]`.
    """
    for one in optimizers(optimizer):
        if isinstance(one, LBFGS):
            raise _refused(one, "a flat history over all parameters", "")
        _check_elsewhere(one, layers)
    for name, layer in layers.items():
        values = layer.values
        for one, _, key, tensor in _tensors(optimizer, values):
            plain = type(tensor) in (Tensor, nn.Parameter, type(values.data))
            if not plain or tensor.dtype in (torch.uint8, torch.int8):
                raise _refused(one, f"quantised {key!r} ({type(tensor).__name__}, {tensor.dtype})", name)
            if tensor.numel() != 1 and not is_aligned(tensor, values.shape):
                raise _refused(one, f"{key!r} of shape {list(tensor.shape)}", name)


def is_aligned(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether it has something for each slot of values [capacity, R, C]: for its weights, its rows or its columns."""
    slots, rows, cols = shape
    each = ((rows, cols), (rows, 1), (1, cols), (1, 1), (rows,), (cols,))
    return tensor.dim() > 1 and tensor.shape[0] == slots and tuple(tensor.shape[1:]) in each


def _refused(optimizer: Any, what: str, name: str, remedy: str = "") -> ValueError:
    of = f" of the layer {name!r}" if name else ""
    return ValueError(
        f"expected optimizer state that is one number or has an entry for every stored block, so that it can follow "
        f"a mask, got {what}{of} in {type(optimizer).__name__}, try torch.optim.AdamW or SGD{remedy}"
    )


def _check_elsewhere(one: Any, layers: Mapping[str, SparseLayer]) -> None:
    """Refuses tensors that an optimizer keeps by position, name or id, or flat: nobody can tell whose they are."""
    groups = [[p for p in group["params"] if isinstance(p, Tensor)] for group in one.param_groups]
    ours = {id(p): p for group in groups for p in group}
    shapes = {layer.values.shape: name for name, layer in layers.items() if id(layer.values) in ours}
    flat = {(sum(p.numel() for p in group),) for group in [*groups, [*ours.values()]]}
    held = [*ours.values(), *(p.grad for p in ours.values() if p.grad is not None)]
    known = {tensor.untyped_storage()._cdata for tensor in held}  # what these share memory with is they themselves
    for where, tensor in _kept_elsewhere(one):
        name = shapes.get(tensor.shape, "" if tuple(tensor.shape) in flat else None)
        if name is not None and tensor.numel() > 1 and tensor.untyped_storage()._cdata not in known:
            what = f"{where!r} of shape {list(tensor.shape)} outside of state[parameter]"
            raise _refused(one, what, name, ", or keeping it in optimizer.state[parameter]")


def _kept_elsewhere(one: Any) -> Iterator[tuple[str, Tensor]]:
    """(what it is kept as, tensor) of all tensors in an optimizer's containers but parameters and their state."""
    waiting = [(key, value) for key, value in vars(one).items() if key not in ("state", "param_groups")]
    waiting += [(str(key), value) for key, value in one.state.items() if not isinstance(key, Tensor)]
    waiting += [(key, value) for group in one.param_groups for key, value in group.items() if key != "params"]
    seen: set[int] = set()
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Tensor):
            yield where, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += [(where, inner) for inner in (value.values() if isinstance(value, dict) else value)]


def _is_optimizer(one: Any) -> bool:
    return isinstance(one, Optimizer) or (
        hasattr(one, "param_groups") and isinstance(getattr(one, "state", None), dict)
    )


def _aligned(optimizer: Any, values: nn.Parameter, shape: torch.Size) -> Iterator[tuple[Any, Any, Any, Tensor]]:
    return (found for found in _tensors(optimizer, values) if is_aligned(found[3], shape))


def _tensors(optimizer: Any, values: nn.Parameter) -> Iterator[tuple[Any, Any, Any, Tensor]]:
    """(optimizer, container, key in it, tensor) of all state of a parameter, every tensor once."""
    seen: set[int] = set()
    for one in optimizers(optimizer):
        if values not in one.state:
            continue
        waiting = [one.state[values]]
        while waiting:
            holder = waiting.pop()
            pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
            for key, value in list(pairs):
                if isinstance(value, Tensor):
                    if id(value) not in seen and value is not values:
                        seen.add(id(value))
                        yield one, holder, key, value
                elif isinstance(value, dict | list | tuple):
                    waiting.append(value)
