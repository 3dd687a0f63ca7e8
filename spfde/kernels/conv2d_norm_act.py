"""conv2d_norm_act: y = act(batch_norm(conv2d(x)) + residual) and its gradients, in fewer passes over memory than both.

The convolution takes the statistics of its output while it writes it, and reads the gradient of its output as it is
computed from the norm's: that gradient is never in memory. For kernels that say so (`Product.normed`), eagerly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from spfde.kernels import call, clock
from spfde.kernels import norm_act_second as second
from spfde.kernels.dtypes import in_torch_ops, without_autocast
from spfde.kernels.epilogue import untracked
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.norm_act import (
    ACTIVATIONS,
    EndsWithNormAct,
    activation_of,
    compute_grad,
    runs_native,
    wanted_grads,
    what_to_hold,
)
from spfde.sparse.plan import Plan


def conv2d_norm_act(
    x: Tensor,
    values: Tensor,
    plan: Plan,
    conv_bias: Tensor | None,
    kernel: str,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    act: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    recompute: bool = False,
) -> Tensor | None:
    """norm_act(conv2d(x)), None where it gains nothing or cannot be, or where either op would raise: call them apart.

    The first five are `conv2d`'s arguments, the rest `norm_act`'s. Running statistics move only where y is returned.
    """
    if act not in ACTIVATIONS:
        y = conv2d_norm_act(
            x, values, plan, conv_bias, kernel, running_mean, running_var, weight, bias,
            residual=residual, training=training, momentum=momentum, eps=eps,
        )  # fmt: skip
        return None if y is None else activation_of(act)(y)
    window = plan.window
    if window.linear or x.dim() != 4 or x.shape[1] != plan.shape[1] * window.groups or in_torch_ops():
        return None
    size = (len(x), plan.rows, *window.output_size(*x.shape[2:]))
    if min(size) < 1 or x.device != values.device:
        return None
    found = call.find(x, values, plan, conv_bias, kernel)
    normed = found.product.normed
    if normed is None or not normed.applies(window, plan.block) or found.composite is not None or not found.as_is:
        return None
    vectors = (weight, bias, running_mean, running_var)
    if not _norm_fits(x, residual, vectors, size, training, eps):
        return None
    graph = not untracked(x, values, conv_bias, residual, weight, bias)
    if (not training and not graph) or (graph and not values.requires_grad):
        return None
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format_of(x))
    values, conv_bias = (t if t is None or t.is_contiguous() else t.contiguous() for t in (values, conv_bias))
    values = plan.ordered(values) if found.arranges else values
    settings = (training, momentum, eps, act)
    holds = what_to_hold(residual, act, recompute)
    return _Conv2dNormAct.apply(
        x, residual, weight, bias, values, conv_bias, *vectors[2:], plan, found, settings, holds
    )


def _norm_fits(
    x: Tensor,
    residual: Tensor | None,
    vectors: tuple[Tensor | None, ...],
    size: tuple[int, ...],
    training: bool,
    eps: float,
) -> bool:
    """Whether norm_act takes these and its native kernel runs. size: of what the norm is given."""
    running_mean, running_var = vectors[2:]
    if any(v is not None and v.shape != (size[1],) for v in vectors) or (
        residual is not None and residual.shape != size
    ):
        return False
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return False
    if eps < 0 or (training and (eps == 0 or size[0] * size[2] * size[3] == 1)):
        return False
    return runs_native(x, residual, *vectors)


class _Conv2dNormAct(EndsWithNormAct):
    """The first four arguments and all that is saved of them are norm_act's, with z = conv2d(x) for its input."""

    @staticmethod
    def forward(
        ctx, x, residual, weight, bias, values, conv_bias, running_mean, running_var, plan, found, settings, holds
    ):
        ctx.plan, ctx.call, ctx.topology_version = plan, found, plan.topology_version
        run = found.product.normed.forward
        run = clock.timed(run) if clock.running else run
        parts = (x, values, conv_bias, found.index, found.problem, residual, weight, bias, running_mean, running_var)
        if call.profiled():
            with record_function(f"spfde::conv2d_norm_act {found.kernel.name}"):
                z, y, mean, var = run(*parts, *settings)
        else:
            z, y, mean, var = run(*parts, *settings)
        training, _, eps, act = settings
        more = (x, values, conv_bias)
        _Conv2dNormAct.save(ctx, y, z, residual, weight, bias, mean, var, (training, eps, act), holds, *more)
        return y

    @staticmethod
    def backward(ctx, dy):
        with without_autocast(dy.device.type):  # the precisions are settled
            return _backward(ctx, dy)


NODE = f"{_Conv2dNormAct.__name__}Backward"  # what autograd calls the node of its results


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    plan, found, settings = ctx.plan, ctx.call, ctx.settings
    plan.check(ctx.topology_version)
    z, y, weight, bias, mean, var, x, values, conv_bias = _Conv2dNormAct.saved(ctx)
    needs = tuple(ctx.needs_input_grad[i] for i in (0, 4, 5))
    norm = (weight, bias, mean, var, *settings)
    again, grads = second.wanted(dy), None
    if not again and plan.live is None and needs[0] and needs[1]:
        run = found.product.normed.gradients
        run = clock.timed(run) if clock.running else run
        parts = (dy, z, y, x, values, found.index, found.problem, needs[2], *norm)
        if call.profiled():
            with record_function(f"spfde::conv2d_norm_act gradients {found.kernel.name}"):
                grads = run(*parts)
        else:
            grads = run(*parts)
    if grads is not None:
        dx, dvalues, dconv_bias, *rest = grads
    else:
        if again and torch.is_grad_enabled():  # z as a function of x
            z = call.run(x, values, conv_bias, plan, found)
        dz, *rest = (second.compute_grad if again else compute_grad)(dy, z, y, *norm)
        dx, dvalues, dconv_bias = call.gradients(dz, x, values, plan, found, x.shape, needs)
    _, *of_norm = wanted_grads(ctx, dy, (None, *rest))
    return dx, *of_norm, dvalues, dconv_bias, *[None] * 6
