"""One image saved per layer instead of two: what `norm_act` can make again from its input is not saved by the next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spfde.kernels.norm_act import can_remake, remake


def without_saving(layer: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Y = layer(y), where backward makes y again instead of keeping it.

    That takes one more pass over memory, for a y that comes from the native `norm_act` without a residual; any other y
    is saved as ever. Gradients are the same bits.
    """
    made = y.grad_fn
    if torch.compiler.is_compiling() or not can_remake(made):
        return layer(y)
    place = (y.data_ptr(), y.shape, y.stride())

    def pack(saved: Tensor) -> Tensor | None:
        same = (saved.data_ptr(), saved.shape, saved.stride()) == place and saved.dtype == torch.float32
        return None if same else saved

    def unpack(packed: Tensor | None) -> Tensor:
        return remake(made) if packed is None else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return layer(y)
