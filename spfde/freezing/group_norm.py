"""Hands torch's group norm what its backward bears behind a frozen prefix.

On a CPU torch's backward of a group norm writes through a null pointer where its input is channels_last and needs no
gradient, which is what a frozen prefix makes of it. Nothing that a frozen module can do tells whether a group norm
follows, so the operator itself is told, for the process: given such an input it computes the same in contiguous memory.
"""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

_LOCK = threading.Lock()


def guard_group_norm() -> None:
    """Registers the remedy, once; every other call goes to torch's operator as it is."""
    with _LOCK:
        _registered()


@cache
def _registered() -> torch.library.Library:
    operator = torch.ops.aten.native_group_norm_backward.default

    def backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *sizes_and_mask):
        wants_dx, *_ = sizes_and_mask[-1]
        if not wants_dx:
            dy, x = dy.contiguous(), x.contiguous()
        with torch._C._AutoDispatchBelowAutograd():
            return operator(dy, x, mean, rstd, weight, *sizes_and_mask)

    library = torch.library.Library("aten", "IMPL")
    library.impl("native_group_norm_backward", backward, "AutogradCPU")
    return library  # which undoes it when it is freed
