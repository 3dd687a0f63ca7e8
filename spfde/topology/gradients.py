"""The gradient of a dense weight from an output's gradient and an input, by the kind of the layer.

Another kind of layer is another branch here; nothing else in a topology looks at the rank of a weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.nn import SparseLayer


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
