"""norm_act as registered ops, for torch.compile, fake tensors and dispatch modes: the same computations."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.kernels import norm_act_second as second
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.norm_act import compute, compute_grad, packed, wanted_grads


@torch.library.custom_op("spfde::norm_act", mutates_args=())
def _op(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = packed(x, residual)
    y, own_mean, own_var = compute(x, residual, weight, bias, mean, var, mean is None, 0.0, eps, act)
    return (y, own_mean, own_var) if mean is None else (y, x.new_empty(0), x.new_empty(0))


@_op.register_fake
def _fake(x, residual, weight, bias, mean, var, eps, act):
    size = x.shape[1] if mean is None else 0
    return torch.empty_like(x, memory_format=memory_format_of(x)), x.new_empty(size), x.new_empty(size)


@torch.library.custom_op("spfde::norm_act_grad", mutates_args=())
def _grad_op(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = packed(x, y)
    dx, dresidual, dweight, dbias = compute_grad(dy, x, y, weight, bias, mean, var, training, eps, act)
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


@_grad_op.register_fake
def _grad_fake(dy, x, y, weight, bias, mean, var, training, eps, act):
    dx = torch.empty_like(x, memory_format=memory_format_of(x))
    return dx, x.new_empty(0) if y is None else torch.empty_like(dx), x.new_empty(mean.shape), x.new_empty(mean.shape)


def _setup_context(ctx, inputs, output):
    x, residual, weight, bias, mean, var, eps, act = inputs
    y, own_mean, own_var = output
    ctx.settings, ctx.residual = (mean is None, eps, act), residual is not None
    statistics = (own_mean, own_var) if mean is None else (mean, var)
    ctx.save_for_backward(x, y if ctx.residual and act != "none" else None, weight, bias, *statistics)


def _backward(ctx, dy, *_):
    tensors = (dy, *ctx.saved_tensors)
    if second.wanted(dy):
        grads = second.compute_grad(*tensors, *ctx.settings)
    else:
        dx, dresidual, dweight, dbias = torch.ops.spfde.norm_act_grad(*tensors, *ctx.settings)
        grads = dx, None if tensors[2] is None else dresidual, dweight, dbias
    return (*wanted_grads(ctx, dy, grads), None, None, None, None)


_op.register_autograd(_backward, setup_context=_setup_context)
