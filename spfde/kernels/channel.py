"""Whole outputs stored or not (pattern "channel"): a smaller dense product, torch's own, its outputs put in place."""

from __future__ import annotations

from torch import Tensor

from spfde.kernels.reference import apply
from spfde.sparse.plan import Plan


def compute(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """y [batch, out, ...], the bias everywhere, differentiated by torch. values: [capacity, 1, cols]."""
    y = apply(x, values[: plan.nnz].reshape(plan.nnz, *plan.shape[1:]), None, plan.window)
    y = y.new_zeros(y.shape[0], plan.rows, *y.shape[2:]).index_copy(1, plan.kept_rows, y)
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))
