"""Stored blocks that are frozen by themselves, in a layer that trains: kept by whatever writes values slot by slot.

Their gradient is 0, which stops no weight decay and no momentum: around every step of a torch optimizer their values
and its state of them are put by and put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from spfde.sparse.index import Index, positions_of
from spfde.sparse.live import Live

if TYPE_CHECKING:
    from spfde.nn.indexed import Indexed


class _PutBy(NamedTuple):
    """What a step must not change. state: (container, key) of a tensor and its frozen rows."""

    layer: Indexed
    slots: Tensor
    values: Tensor
    state: dict[tuple[int, Any], Tensor]


_layers: WeakSet[Indexed] = WeakSet()
_put_by: WeakKeyDictionary[Any, list[_PutBy]] = WeakKeyDictionary()


def hold(layer: Indexed, positions: Tensor | None) -> None:
    """Makes the blocks of a layer at these positions (int64, ascending) constant, and no other; None: none."""
    layer._held = positions
    follow(layer)
    live = layer.plan.live
    if live is not None and layer.values.grad is not None:
        layer.values.grad.index_fill_(0, live.held, 0)


def follow(layer: Indexed) -> None:
    """Tells a layer's plan, which may be new, what is held of it."""
    plan, positions = layer._plan, layer._held
    if positions is not None:
        _layers.add(layer)
    if plan is None or (plan.live is None and positions is None):
        return
    if positions is None:
        plan.live = None
        _layers.discard(layer)
    else:
        layer._held = positions = positions.to(plan.index.col.device)
        plan.live = Live(plan, positions)
    plan.calls.clear()


def refusal(layer: Indexed, positions: Tensor) -> str | None:
    """Why a layer cannot store just the blocks at these positions (int64): they leave out what is frozen. Or None."""
    if layer._held is None:
        return None
    lost = int((~torch.isin(layer._held, positions.to(layer._held.device))).sum())
    if not lost:
        return None
    return (
        f"expected positions that keep the {layer._held.numel()} frozen blocks, got some without {lost} of them, try "
        "spfde.freezing.unfreeze_weights(layer) first"
    )


def refusal_of_state(layer: Indexed, row_ptr: Any, col: Any) -> str | None:
    """`refusal` of an index that is about to be loaded."""
    if layer._held is None or not isinstance(row_ptr, Tensor) or not isinstance(col, Tensor):
        return None
    return refusal(layer, positions_of(Index(row_ptr, col), layer.grid.shape[1]))


# ---- steps of optimizers ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _layers:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    kept = []
    for layer in list(_layers):
        live = None if layer._plan is None else layer._plan.live
        if id(layer.values) not in held or live is None or not live.held.numel():
            continue
        state = {}
        for holder, key, tensor in _state(optimizer, layer):
            state[id(holder), key] = tensor[live.held]
        kept.append(_PutBy(layer, live.held, layer.values.detach()[live.held], state))
    _put_by[optimizer] = kept


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for layer, slots, values, before in _put_by.pop(optimizer, ()):
        layer.values.index_copy_(0, slots, values)
        for holder, key, tensor in _state(optimizer, layer):
            rows = before.get((id(holder), key))
            if rows is None:  # made in this step: as that of a weight that grew
                tensor.index_fill_(0, slots, 0)
            else:
                tensor.index_copy_(0, slots, rows)


def _state(optimizer: Any, layer: Indexed) -> Iterator[tuple[Any, Any, Tensor]]:
    """(container, key, tensor) of all that an optimizer remembers of a layer's values but single numbers.

    Raises:
        ValueError: a tensor has no row for each block.
    """
    waiting = [optimizer.state[layer.values]] if layer.values in optimizer.state else []
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, Tensor) and value.dim() and value.numel() > 1:
                if value.shape[0] != layer.values.shape[0]:
                    raise ValueError(
                        f"expected optimizer state with a row for every block, as some are frozen, got {key!r} of "
                        f"shape {list(value.shape)} in {type(optimizer).__name__}, try torch.optim.AdamW or SGD"
                    )
                yield holder, key, value
            elif isinstance(value, dict | list | tuple):
                waiting.append(value)


register_optimizer_step_pre_hook(_before)
register_optimizer_step_post_hook(_after)
