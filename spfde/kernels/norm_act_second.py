"""The gradients of norm_act in torch's own ops: to be differentiated again, or batched."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.dtypes import is_batched
from spfde.kernels.epilogue import act_grad


def wanted(dy: Tensor) -> bool:
    """Whether a backward pass is asked for gradients that a native kernel cannot give."""
    return torch.is_grad_enabled() or is_batched(dy)


def compute_grad(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    act: str,
) -> tuple[Tensor | None, ...]:
    """(dx, dresidual, dweight, dbias); dresidual only with y. Differentiable to any order."""
    again = torch.is_grad_enabled()
    parts = [t if t is None or (again and t.requires_grad) else t.detach().requires_grad_() for t in (x, weight, bias)]
    with torch.enable_grad():
        z = F.batch_norm(parts[0], *((None, None) if training else (mean, var)), *parts[1:], training, 0.0, eps)
    dz = act_grad(dy, (z if y is None else y).detach(), act)
    asked = [part for part in parts if part is not None]
    found = iter(torch.autograd.grad(z, asked, dz, create_graph=again))
    dx, dweight, dbias = (None if part is None else next(found) for part in parts)
    return dx, None if y is None else dz, dweight, dbias
