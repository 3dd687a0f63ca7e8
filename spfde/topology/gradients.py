"""The gradient of a dense weight from an output's gradient and an input, by the kind of the layer.

Another kind of layer is another branch here; nothing else in a topology looks at the rank of a weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.nn import SparseLayer
from spfde.sparse import no_sync


def factors(layer: SparseLayer, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output's gradient and the input with one batch dimension: [n, out] and [n, in], or [n, channels, h, w]."""
    if len(layer.shape) == 2:
        return dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return (dy.unsqueeze(0), x.unsqueeze(0)) if x.dim() == 3 else (dy, x)


def dense_gradient(layer: SparseLayer, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of dL/dW, all of them whether stored or not: [stop - start, *shape[1:]], at least float32.

    dy, x: as `factors` gives them. Of a grouped convolution rows are of whole groups.
    """
    dy, shape, window = wide(dy[:, start:stop]), (stop - start, *layer.shape[1:]), layer.window
    if len(shape) == 2:
        return dy.t() @ wide(x)
    groups = 1
    if window.groups > 1:
        per_group = layer.shape[0] // window.groups
        groups, first = shape[0] // per_group, start // per_group
        x = x[:, first * shape[1] : (first + groups) * shape[1]]
    top, bottom, left, right = window.padding
    x = F.pad(wide(x), (left, right, top, bottom)).contiguous()
    return torch.nn.grad.conv2d_weight(x, shape, dy.contiguous(), window.stride, (0, 0), window.dilation, groups)


def wide(tensor: Tensor) -> Tensor:
    """float64 stays, anything else is summed in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without(one: Tensor, other: Tensor) -> Tensor:
    """The part of a vector that is at right angles to another one."""
    return one - other * ((one @ other) / (other @ other).clamp_min(torch.finfo(other.dtype).tiny))


def placed(blocks: Tensor, here: Tensor) -> Tensor:
    """The block at each of the places `here`, 0 where it lies outside of `blocks`."""
    inside = (here >= 0) & (here < len(blocks))
    return blocks[here.clamp(0, len(blocks) - 1)] * inside.view(-1, 1, 1)


def stored(blocks: Tensor, here: Tensor) -> Tensor:
    """Those blocks that are at the places `here`, ascending, of which some may lie outside; a GPU adds zeros."""
    if not no_sync.is_async(here):
        start, stop = torch.searchsorted(here, torch.tensor([0, len(blocks)])).tolist()
        return blocks[here[start:stop]]
    return placed(blocks, here)
