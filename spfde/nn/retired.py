"""Parameters that a conversion took out of a model: an optimizer that still steps them would train nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class _Retired(NamedTuple):
    """A Parameter that was taken out; what it belonged to may be gone.

    name: within the model. by: the call that took it out. grad: what was accumulated by then, as `_state` has it.
    """

    parameter: ReferenceType[nn.Parameter]
    owner: ReferenceType[nn.Module]
    name: str
    by: str
    grad: tuple[int, int] | None


_retired: dict[int, _Retired] = {}
_hook: Any = None


def retire(model: nn.Module, successors: Mapping[nn.Module, nn.Module], parameter: str, by: str) -> None:
    """Makes the next step of an optimizer that holds a `parameter` of what `successors` replaces raise ValueError.

    by: the call that replaces. To be called before it does. Costs nothing once the Parameters are gone.
    """
    retire_named({name: module for name, module in model.named_modules() if module in successors}, parameter, by)


def retire_named(modules: Mapping[str, nn.Module], parameter: str, by: str) -> None:
    """`retire` for the modules that are replaced, by name."""
    global _hook
    for name, module in modules.items():
        old = module._parameters.get(parameter)
        if old is None:
            continue
        key, where = id(old), f"{name}.{parameter}".lstrip(".")
        _retired[key] = _Retired(ref(old, lambda _, key=key: _forget(key)), ref(module), where, by, _state(old.grad))
    if _retired and _hook is None:
        _hook = register_optimizer_step_pre_hook(_check)


def _forget(key: int) -> None:
    global _hook
    _retired.pop(key, None)
    if not _retired and _hook is not None:
        _hook.remove()
        _hook = None


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    found = [one for p in held if (one := _retired.get(id(p))) is not None and one.parameter() is p and _idle(one)]
    if found:
        names = ", ".join(repr(one.name) for one in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        raise ValueError(
            f"expected an optimizer built after {found[0].by}, got one that still holds {names}, which the model no "
            "longer has, so that they would not be trained, try building the optimizer anew"
        )


def _idle(one: _Retired) -> bool:
    """Whether nothing trains it: a layer that somebody kept may go on by itself."""
    owner, parameter = one.owner(), one.parameter()
    if owner is None or owner._parameters.get(one.name.rpartition(".")[2]) is not parameter:
        return True
    return one.by == "spfde.densify" and _state(parameter.grad) in (None, one.grad)


def _state(grad: Tensor | None) -> tuple[int, int] | None:
    """What changes when a gradient does."""
    return None if grad is None else (id(grad), grad._version)
