"""The weight as a parent's forward reads it: products by it run sparse, anything else makes it dense."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from spfde.nn.guard import DenseWeight

if TYPE_CHECKING:
    from spfde.nn.linear import SparseLinear

_GETTERS = ("shape", "dtype", "device", "layout", "requires_grad", "ndim", "is_cuda", "is_cpu", "is_meta", "is_sparse")
_METHODS = ("size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "__len__")
_DESCRIBES = {getattr(Tensor, name).__get__ for name in _GETTERS} | {getattr(Tensor, name) for name in _METHODS}
_TURNS = {Tensor.t, Tensor.T.__get__, Tensor.mT.__get__, torch.t, Tensor.transpose, torch.transpose}  # type: ignore[attr-defined]
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


class LazyWeight(DenseWeight):
    """A linear layer's weight that has no memory: `F.linear(x, layer.weight)` and x @ layer.weight.t() run sparse.

    Whatever else is done with it is done with the dense weight, made at the first such use and differentiable.
    """

    _layer: SparseLinear
    _turned: bool  # [inputs, outputs]
    _made: Tensor | None

    @staticmethod
    def of(layer: SparseLinear, turned: bool = False) -> LazyWeight:
        """The weight of a layer, [outputs, inputs] unless it is `turned`."""
        values, shape = layer.values, tuple(layer.shape)
        lazy = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            LazyWeight, shape[::-1] if turned else shape, dtype=values.dtype, device=values.device,
            requires_grad=values.requires_grad and torch.is_grad_enabled(),
        )  # fmt: skip
        lazy._layer, lazy._turned, lazy._made = layer, turned, None
        return lazy

    def dense(self) -> Tensor:
        """The dense weight, differentiable."""
        if self._made is None:
            made = self._layer.read_dense()
            self._made = made if self._turned == self._layer.turned else made.mT
        return self._made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DESCRIBES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _TURNS and isinstance(args[0], LazyWeight):
            return LazyWeight.of(args[0]._layer, not args[0]._turned)
        sparse = _sparse(func, args, kwargs)
        if sparse is not None:
            return sparse()
        args, kwargs = tree_map(_made_dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        raise TypeError(f"expected a tensor with memory for {func}, got a sparse layer's weight, try layer.weight + 0")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.dense(), memo)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.dense().__reduce_ex__(protocol)


def _made_dense(value: Any) -> Any:
    return value.dense() if isinstance(value, LazyWeight) else value


def _sparse(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    """The product that a call stands for, None where it is no product of one such weight and a plain tensor."""
    if sum(isinstance(leaf, LazyWeight) for leaf in tree_leaves((args, kwargs))) != 1:
        return None
    if func is F.linear:
        x, weight, bias = _named(("input", "weight", "bias"), args, kwargs)
        if isinstance(weight, LazyWeight) and not weight._turned:
            return lambda: weight._layer.multiply(x, bias)
    elif func in _PRODUCTS and len(args) == 2 and not kwargs:
        left, right = args
        if isinstance(right, LazyWeight) and right._turned:
            return lambda: right._layer.multiply(left, None)
        if isinstance(left, LazyWeight) and not left._turned and right.dim() > 1:
            return lambda: left._layer.multiply(right.mT, None).mT
    elif func in (torch.addmm, Tensor.addmm) and len(args) == 3 and not kwargs:
        bias, x, weight = args
        if isinstance(weight, LazyWeight) and weight._turned and bias.dim() == 1:
            return lambda: weight._layer.multiply(x, bias)
    return None


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return [given.get(name) for name in names]
