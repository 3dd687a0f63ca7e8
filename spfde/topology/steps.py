"""Which optimizers took a step: what tells a step that was skipped, and passes that a step did not see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_counts: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
_last: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # the step of the process that was its last one
_all = 0


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    global _all
    _all += 1
    _counts[optimizer], _last[optimizer] = _counts.get(optimizer, 0) + 1, _all


register_optimizer_step_post_hook(_count)


def now() -> int:
    """How many steps all optimizers took in this process."""
    return _all


def stepping_instead(values: set[int], known: Iterable[Any], since: int) -> Optimizer | None:
    """An optimizer that took a step `since` then and holds these parameters (ids), other than the known ones."""
    known = {id(one) for one in known}
    for one, last in list(_last.items()):
        held = (id(p) for group in one.param_groups for p in group["params"])
        if last > since and id(one) not in known and not values.isdisjoint(held):
            return one
    return None


def taken(optimizers: Iterable[Any]) -> int:
    """How many steps these optimizers took in this process; 0: none that could be seen."""
    return sum(_counts.get(one, 0) for one in optimizers if isinstance(one, Optimizer))
