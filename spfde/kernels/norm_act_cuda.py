"""norm_act by the CUDA kernels (csrc/cuda/norm_act.cu), in training too: on a GPU where Triton is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels import cuda, triton
from spfde.kernels.dtypes import cast, in_torch_ops, name_of, through_dispatcher
from spfde.kernels.gpu import gpu_at, queue_of
from spfde.kernels.norm_act_frozen import fits


def runs(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
) -> bool:
    """Whether they take these: a device and precisions of their own, some values, and no Triton there."""
    if not on_gpu(x) or x.dtype not in cuda.DTYPES or x.numel() == 0 or through_dispatcher(x) or in_torch_ops():
        return False
    if triton.available() or cuda.absence() is not None:
        return False
    if residual is not None and (residual.dtype != x.dtype or residual.device != x.device):
        return False
    moved = (running_mean, running_var) if training else ()  # where they lie
    if any(v is not None and (v.dtype != torch.float32 or not v.is_contiguous()) for v in moved):
        return False
    return fits(x, running_mean, running_var, weight, bias)


def on_gpu(x: Tensor) -> bool:
    """Whether x is theirs to compute."""
    return x.is_cuda


def vector(v: Tensor | None) -> Tensor | None:
    """What belongs to a channel, in the kernels' precision and without gaps."""
    v = cast(v, torch.float32)
    return v if v is None or v.is_contiguous() else v.contiguous()


def run(op: str, x: Tensor, shape: tuple[int, int, int, bool], *rest: Any) -> None:
    """Queues "norm_act" or "norm_act_grad" for images of this `NormShape`; rest: as the native op of a CPU takes it."""
    units = gpu_at(x.device).units
    scratch = torch.empty(native().cuda_norm_act_scratch(*shape, units), dtype=torch.uint8, device=x.device)
    last = (name_of(x.dtype), units, scratch.data_ptr(), *queue_of(x))
    getattr(native(), f"cuda_{op}")(*shape, *rest, *last)
