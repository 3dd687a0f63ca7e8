"""Frozen means constant: no gradient, no optimizer step, no moving statistics, whoever calls `train()`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from spfde.freezing.group_norm import guard_group_norm
from spfde.freezing.wrapped import check_reduced, check_wrapped

__all__ = ["freeze", "is_frozen", "unfreeze"]


class _Held:
    """Stands in for `train` of one frozen module and remembers what unfreezing gives back.

    It lives in the instance's `__dict__`, so `state_dict` does not see it, and it refers to its module, so
    deepcopy and pickle carry it over to the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.mode = module.training
        self.trainable = tuple(name for name, p in _own_parameters(module) if p.requires_grad)
        self.children = dict(module.named_children())

    def __setstate__(self, state: dict[str, Any]) -> None:
        guard_group_norm()  # a frozen model may come from another process
        vars(self).update(state)

    def __call__(self, mode: bool = True) -> nn.Module:
        if not isinstance(mode, bool):
            raise ValueError(f"expected a bool as training mode, got {mode!r}; try True or False")
        self.adopt()
        for child in self.module.children():  # a child may have been unfrozen on its own
            child.train(mode)
        return self.module

    def adopt(self) -> None:
        """Marks what took a frozen child's place with its very tensors, as a SyncBatchNorm does."""
        for name, child in self.module.named_children():
            old = self.children.get(name)
            if old is None or old is child or not _is_held(old):
                continue
            own, before = dict(_own_state("", child)), dict(_own_state("", old))
            if own and own.keys() == before.keys() and all(own[key] is before[key] for key in own):
                old.__dict__["train"].hand_over(child)
            self.children[name] = child

    def hand_over(self, module: nn.Module) -> None:
        """Leaves the mark with `module`, which takes the frozen one's place, dense for sparse or sparse for dense."""
        held = copy.copy(self)
        held.module = module
        if "weight" in self.trainable or "values" in self.trainable:
            held.trainable = (*self.trainable, "weight", "values")
        module.training = False
        module.__dict__["train"] = held
        fix(p for _, p in _own_parameters(module))


def freeze(module: nn.Module, *, model: nn.Module | None = None) -> nn.Module:
    """Makes `module` and everything inside it constant, and returns it.

    Its parameters stop requiring gradients and lose the ones they have, so optimizers skip them (weight
    decay and momentum included); it stays in eval mode through `train()` calls on it, its parents or its
    children, so BatchNorm statistics are fixed and dropout is off. Survives deepcopy and pickle; `state_dict`
    keys do not change.

    Being frozen is a property of each single module: `freeze` marks the whole tree, `unfreeze` unmarks the
    whole tree, and the last call on a module wins. Freezing twice is freezing once.

    Args:
        module: the part to freeze.
        model: the whole network. With it, a parameter, buffer or dropout that `module` shares with a part
            that is not frozen is refused; without it a shared parameter is constant in both places.

    Raises:
        TypeError: `module` is not an nn.Module.
        ValueError: something of `module` also serves an unfrozen part of `model`; nothing has changed then.
        RuntimeError: a DistributedDataParallel around it would wait for its gradients; nothing has changed then.
    """
    _check_module(module)
    if model is not None:
        check_unshared([module], model)
    hold(module.modules())
    return module


def unfreeze(module: nn.Module) -> nn.Module:
    """Gives `module` and everything inside it back as if it had never been frozen, and returns it.

    Parameters that required a gradient when they were frozen do so again, and each module is in the mode that
    it had then. Modules that are not frozen stay as they are.

    Raises:
        TypeError: `module` is not an nn.Module.
        RuntimeError: a DistributedDataParallel was made while it was frozen; nothing has changed then.
    """
    _check_module(module)
    release(module.modules())
    return module


def is_frozen(module: nn.Module) -> bool:
    """Whether `module` and every module inside it are frozen, in eval mode and without a parameter to train.

    A frozen module that something put into training mode past its `train()` is not: its statistics move.

    Raises:
        TypeError: `module` is not an nn.Module.
    """
    _check_module(module)
    return is_constant(module.modules())


def hold(modules: Iterable[nn.Module]) -> None:
    """Freezes each of `modules` without what is inside it."""
    modules = _adopted(modules)
    check_wrapped([p for m in modules for _, p in _own_parameters(m)])
    guard_group_norm()
    fresh = [m for m in modules if not _is_held(m)]
    held = [_Held(m) for m in fresh]  # all remembered before the first change: tied parameters appear twice
    for m, mark in zip(fresh, held, strict=True):
        m.__dict__["train"] = mark
    for m in modules:
        m.training = False  # of marked ones too: a `train()` of somebody's own may have set it
    fix(p for m in modules for _, p in _own_parameters(m))


def release(modules: Iterable[nn.Module]) -> None:
    """Unfreezes each of `modules` without what is inside it."""
    held = [m for m in _adopted(modules) if _is_held(m)]
    check_reduced([p for m in held for name, p in _own_parameters(m) if name in m.__dict__["train"].trainable])
    for m in held:
        mark = m.__dict__.pop("train")
        m.training = mark.mode
        for name, parameter in _own_parameters(m):
            if name in mark.trainable:
                parameter.requires_grad_(True)


def is_constant(modules: Iterable[nn.Module]) -> bool:
    """Whether each of `modules` is frozen, without what is inside it."""
    return all(
        _is_held(m) and not m.training and not any(p.requires_grad for _, p in _own_parameters(m))
        for m in _adopted(modules)
    )


def fix(parameters: Iterable[nn.Parameter]) -> None:
    """Stops `parameters` from moving: no gradient wanted, none left behind for an optimizer to apply."""
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def check_unshared(
    modules: Iterable[nn.Module], model: nn.Module, *, active: Collection[nn.Module] = frozenset()
) -> None:
    """Refuses by name what `modules`, about to be frozen, share with a part of `model` that stays active.

    active: single modules inside of `modules` that are not frozen with them.

    Raises:
        ValueError: a parameter, buffer or dropout serves both sides.
    """
    roots = list(modules)
    names = {id(m): name for name, m in model.named_modules()}
    inside = {id(m) for root in roots for m in root.modules() if m not in active}
    ours = {
        id(thing): where
        for root in roots
        for name, m in root.named_modules(prefix=names.get(id(root), type(root).__name__))
        if m not in active
        for where, thing in ((name, m), *_own_state(name, m))
    }
    inner = inside - {id(root) for root in roots}
    for name, m in model.named_modules():
        if id(m) in inside or _is_held(m):
            continue
        lent = [(_join(name, n), c) for n, c in m.named_children() if id(c) in inner and has_mode_or_state(c)]
        for where, thing in (*_own_state(name, m), *lent):
            if id(thing) in ours:
                raise ValueError(
                    f"expected what is frozen to serve no active part, got {ours[id(thing)]!r} shared with "
                    f"{where!r}; try freezing both together, or give each its own"
                )


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}; try one of model.named_modules()")


def _is_held(module: nn.Module) -> bool:
    return isinstance(module.__dict__.get("train"), _Held)


def _adopted(modules: Iterable[nn.Module]) -> list[nn.Module]:
    modules = list(modules)
    for m in modules:
        if _is_held(m):
            m.__dict__["train"].adopt()
    return modules


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False)


def _own_state(name: str, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for n, tensor in (*_own_parameters(module), *module.named_buffers(recurse=False)):
        yield _join(name, n), tensor


def has_mode_or_state(module: nn.Module) -> bool:
    """Whether freezing `module` can be noticed by another user of it (an activation or a pooling cannot)."""
    dropout = any(isinstance(m, _DropoutNd) for m in module.modules())
    return dropout or any(True for m in module.modules() for _ in _own_state("", m))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
