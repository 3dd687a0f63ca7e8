"""The weight gradient of a layer of which some stored places are frozen: computed at the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from spfde.kernels.registry import Gradients, bias_grad
from spfde.sparse.plan import Plan

if TYPE_CHECKING:
    from spfde.kernels.call import Call


def weight_grad(dy: Tensor, x: Tensor, plan: Plan, call: Call, bias: bool) -> tuple[Tensor, Tensor]:
    """As `Product.weight_grad` of the whole plan, 0 at what is frozen."""
    live, product = plan.live, call.product
    if live is None:
        return product.weight_grad(dy, x, call.index, plan.arranged_block, call.problem, bias)
    if call.trained_index is None:
        return live.no_gradient(dy), bias_grad(dy) if bias else dy.new_empty(0)
    part, dbias = product.weight_grad(dy, x, call.trained_index, plan.arranged_block, call.trained_problem, bias)
    return live.spread(part), dbias


def gradients(
    dy: Tensor,
    x: Tensor,
    values: Tensor,
    plan: Plan,
    call: Call,
    size: Sequence[int],
    needs: Sequence[bool],
    weight: Tensor | None,
) -> Gradients:
    """As `Product.gradients` where values are wanted, by `weight_grad`."""
    need_x, _, need_bias = needs
    dx = call.product.input_grad(dy, values, call.index, call.problem, size, weight) if need_x else None
    dvalues, dbias = weight_grad(dy, x, plan, call, need_bias)
    return dx, dvalues, dbias if need_bias else None
