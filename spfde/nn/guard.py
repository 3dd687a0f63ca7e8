"""The dense weight as it is given to be read: what would write it in place, where no layer would see it, is refused."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_HARMLESS = frozenset({"requires_grad_", "retain_grad", "share_memory_", "record_stream", "rename_"})
_OPERATORS = ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_WRITING = frozenset({"__setitem__", *(f"__i{name}__" for name in _OPERATORS)})


class DenseWeight(Tensor):
    """A dense weight made from stored values: a tensor in every way but that nothing writes it in place."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _writes(func, args, kwargs):
            raise ValueError(
                "expected .weight of a sparse layer to be read, got a write in place to it, a dense copy that is made "
                "at every reading, try layer.values (the stored weights), layer.move_to for their places, or "
                "load_state_dict"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
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


def _writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if func == Tensor.data.__set__:
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
