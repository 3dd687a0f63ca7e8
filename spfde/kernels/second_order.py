"""Gradients that can be differentiated again, by the very kernels that made them.

<dY, op(X, W)> is linear in each of dY, X and W, and its derivatives by them are the three products y, dX and dW. The
derivative of each by its two factors is another of them, with the gradient in place of the third: any order is made of
the same three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spfde.kernels import clock, partly, plain
from spfde.kernels.dtypes import cast, is_batched
from spfde.kernels.registry import Gradients, bias_grad
from spfde.sparse.plan import Plan

if TYPE_CHECKING:
    from spfde.kernels.call import Call


def gradients(
    dy: Tensor, x: Tensor | None, values: Tensor, plan: Plan, call: Call, size: Sequence[int], needs: Sequence[bool]
) -> Gradients:
    """The gradients of x, values and bias that are needed, as `Product.gradients`, differentiable to any order."""
    need_x, need_values, need_bias = needs
    dx = _Derivative.apply(dy, None, values, plan, call, size) if need_x else None
    dvalues = _Derivative.apply(dy, x, None, plan, call, size) if need_values else None
    return dx, dvalues, bias_grad(dy) if need_bias else None


def input_grad(dy: Tensor, values: Tensor, plan: Plan, call: Call, size: Sequence[int]) -> Tensor:
    """dX [size] for an output gradient dy and values as `Plan.arrange` gives them, differentiable to any order."""
    return _Derivative.apply(dy, None, values, plan, call, size)


class _Derivative(torch.autograd.Function):
    """The derivative of <dy, op(x, values)> by the one of the three that is None."""

    @staticmethod
    def forward(ctx: Any, dy, x, values, plan, call, size):
        ctx.save_for_backward(dy, x, values)
        ctx.plan, ctx.call, ctx.size, ctx.topology_version = plan, call, size, plan.topology_version
        product, index, problem = call.product, call.index, call.problem
        if dy is None:
            return _timed(product.forward)(x, values, None, index, problem)
        if x is None:
            return _timed(product.input_grad)(dy, values, index, problem, size)
        return _timed(partly.weight_grad)(dy, x, plan, call, False)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        plan, call, given = ctx.plan, ctx.call, ctx.saved_tensors
        plan.check(ctx.topology_version)
        grad, live = cast(grad, call.compute).contiguous(), plan.live
        if live is not None and given[2] is None:  # nothing depends on a weight gradient that is 0 always
            grad = live.cut(grad)
        batched, grads = is_batched(grad), []
        for wanted, factor in enumerate(given):
            if factor is None or not ctx.needs_input_grad[wanted]:
                grads.append(None)
                continue
            parts = [None if i == wanted else grad if part is None else part for i, part in enumerate(given)]
            if batched:
                found = plain.derivative(*parts, plain.weight_of(plan), ctx.size)
                grads.append(found if live is None or wanted != 2 else live.cut(found))
                continue
            if wanted == 2 and plan.owner is not None and (owner := plan.owner()) is not None:
                owner.show_gradient(*parts[:2])
            grads.append(_Derivative.apply(*parts, plan, call, ctx.size))
        return *grads, None, None, None


def _timed(kernel: Any) -> Any:
    return clock.timed(kernel) if clock.running else kernel
