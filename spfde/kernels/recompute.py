"""Layers that do not save their input: what is made from saved tensors in one cheap pass is made again in backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.dtypes import in_torch_ops
from spfde.kernels.norm_act import can_remake, remake

Result = TypeVar("Result")


def without_saving(layer: Callable[[Tensor], Result], y: Tensor, gelu: bool = False) -> Result:
    """layer(y), where backward makes y again instead of keeping it.

    That takes one more pass over memory, for a y that comes from the native `norm_act` or, with `gelu`, from a GELU
    just before, torch's or at the end of a layer's kernel; any other y is saved as ever. Gradients are the same bits,
    but for how that kernel and torch's round a GELU.
    """
    make = None if torch.compiler.is_compiling() or in_torch_ops() else _maker(y.grad_fn, gelu)
    if make is None:
        return layer(y)
    place, order = _place(y), (y.shape, y.stride(), y.is_contiguous())  # values only: the hooks must not hold y

    def pack(saved: Tensor) -> Tensor | torch.Size:
        shape, stride, contiguous = order
        alike = (saved.shape, saved.stride()) == (shape, stride) or (contiguous and saved.is_contiguous())
        return saved.shape if alike and _place(saved) == place else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        made = make()  # a layer's kernel may have been given another memory format than it returned
        return (made.contiguous() if order[2] else made).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return layer(y)


def _place(tensor: Tensor) -> tuple[int, int, torch.dtype, int]:
    """What y and a tensor that is saved have in common where they are the same, and neither has changed."""
    return tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor._version


def _maker(node: Any, gelu: bool) -> Callable[[], Tensor] | None:
    """What makes the output of this node of the autograd graph again, None where nothing cheap does."""
    if can_remake(node):
        return partial(remake, node)
    if not gelu or _outer_hooks():
        return None
    if type(node).__name__ == "ViewBackward0":  # a layer's result of more than two dimensions
        node = node.next_functions[0][0]
    if type(node).__name__ == "GeluBackward0":
        return lambda: _gelu(node._saved_self, node._saved_approximate)
    call = getattr(node, "call", None)
    if getattr(call, "act", "") == "gelu" and not call.residual_after_act:
        return lambda: _gelu(node.saved_tensors[2], "none")  # beside its input and values: what the GELU was given
    return None


def _outer_hooks() -> bool:
    """Whether hooks see what torch saves, such as a checkpoint's: it lets nothing be looked at twice."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def _gelu(z: Tensor, approximate: str) -> Tensor:
    with torch.no_grad():
        return F.gelu(z, approximate=approximate)
