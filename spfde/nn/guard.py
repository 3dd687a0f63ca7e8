"""The dense weight as it is given to be read: what would write or replace it, unseen by its layer, is refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_HARMLESS = frozenset({"requires_grad_", "retain_grad", "share_memory_", "record_stream", "rename_"})
_OPERATORS = ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_WRITING = frozenset({"__setitem__", *(f"__i{name}__" for name in _OPERATORS)})
_SETTERS = (Tensor.data.__set__, Tensor.grad.__set__)  # type: ignore[attr-defined]
# Modules of torch.nn.utils that put something else in a weight's place.
_REPLACING = frozenset(f"torch.nn.utils.{name}" for name in ("weight_norm", "prune", "parametrizations"))


class DenseWeight(Tensor):
    """A dense weight made from stored values: a tensor in every way but that nothing writes it in place."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _writes(func, args, kwargs):
            raise only_read("a write in place to it")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func is Tensor.numpy:
            result.flags.writeable = False
        return _guarded(result, args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def guarded(dense: Tensor) -> Tensor:
    """The same tensor, differentiable, which refuses to be written in place; as it is where something traces."""
    if type(dense) is not Tensor or torch.jit.is_tracing() or torch._C._functorch.is_functorch_wrapped_tensor(dense):
        return dense
    return dense.as_subclass(DenseWeight)


class Parameters(dict):
    """The Parameters of a sparse layer, by name: who asks for a weight among them, to replace it, is told."""

    def __missing__(self, name: str) -> Any:
        if name == "weight":
            raise only_read("something that replaces it")
        raise KeyError(name)


def check_reader() -> None:
    """Refuses torch's weight_norm, prune and parametrizations, which read a weight to replace it.

    To be called by what is read.

    Raises:
        ValueError: one of them reads.
    """
    reader = sys._getframe(2).f_globals.get("__name__")
    if reader in _REPLACING:
        raise only_read(f"{reader}, which replaces it")


def only_read(what: str) -> ValueError:
    """What is said to who would write the weight."""
    return ValueError(
        f"expected .weight of a sparse layer, a dense copy that is made at every reading, to be read, got {what}, try "
        "layer.values (the stored weights), layer.move_to for their places, load_state_dict, or a layer that stays "
        "dense (exclude=, spfde.densify)"
    )


def _writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if func in _SETTERS:
        return True
    if any(isinstance(one, DenseWeight) for one in tree_leaves(kwargs.get("out"))):
        return True
    if name not in _WRITING and (name in _HARMLESS or not name.endswith("_") or name.endswith("__")):
        return False
    written = args[:1] if args else [next(iter(kwargs.values()), None)]
    return any(isinstance(one, DenseWeight) for one in tree_leaves(written))


def _guarded(result: Any, args: tuple[Any, ...]) -> Any:
    """Views of a dense weight are guarded as it is; results of their own are plain."""
    if isinstance(result, tuple | list) and all(isinstance(one, Tensor) for one in result):
        kept = [_guarded(one, args) for one in result]
        return result if all(a is b for a, b in zip(kept, result, strict=True)) else type(result)(kept)
    if type(result) is not Tensor or result.layout != torch.strided:
        return result
    place = result.untyped_storage()._cdata
    shared = any(isinstance(a, DenseWeight) and a.untyped_storage()._cdata == place for a in args)
    return result.as_subclass(DenseWeight) if shared else result
