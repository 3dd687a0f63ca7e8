"""norm_act in evaluation where no gradient is wanted: one Triton kernel, or the end of a convolution's."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.kernels.clock import timed
from spfde.kernels.dtypes import through_dispatcher
from spfde.kernels.epilogue import untracked
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.triton import why_not

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def runs(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> bool:
    """Whether Triton's kernel takes these: a device and precisions of its own, and no gradient wanted."""
    if through_dispatcher(x) or why_not(x.device.type) is not None or x.dtype not in DTYPES:
        return False
    if residual is not None and (residual.dtype != x.dtype or residual.device != x.device):
        return False
    return fits(x, *vectors) and untracked(x, residual, *vectors)


def fits(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether torch's batch_norm takes vectors of these precisions with x, and Triton's kernels too."""
    return all(v is None or (v.dtype in (x.dtype, torch.float32) and v.device == x.device) for v in vectors)


def affine(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """(scale, shift) [channels] in float32: batch_norm(x) by these statistics is scale x + shift."""
    with torch.no_grad():
        scale = (var.float() + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        return scale, -mean * scale if bias is None else torch.addcmul(bias.float(), mean.float(), scale, value=-1)


@timed
def compute(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str,
) -> Tensor:
    """y = act(batch_norm(x) + residual) in the memory format of x; copied first where memory has gaps."""
    from spfde.kernels.triton import norm_act

    layout = memory_format_of(x)
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    vectors = (v if v is None or v.is_contiguous() else v.contiguous() for v in (mean, var, weight, bias))
    return norm_act.forward(x.contiguous(memory_format=layout), *vectors, residual, eps, act)
