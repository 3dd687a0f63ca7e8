"""Whole outputs stored or not (pattern "channel"): a smaller dense product, torch's own, its outputs put in place."""

from __future__ import annotations

from torch import Tensor

from spfde.kernels.reference import apply
from spfde.sparse.plan import Plan


def compute(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """y [batch, out, ...], the bias everywhere, differentiated by torch. values: [capacity, 1, cols]."""
    live, kept = plan.live, plan.kept_rows
    if live is None or live.plan is None:
        parts = [(kept, apply(x, _weight(plan.hold(values), plan), None, plan.window))]
    else:  # frozen outputs by a product of their own, which has no weight gradient
        split = ((live.held, _weight(values.detach(), plan)), (live.trained, _weight(values, plan)))
        parts = [(kept[slots], apply(x, rows[slots], None, plan.window)) for slots, rows in split if slots.numel()]
    y = parts[0][1]
    y = y.new_zeros(y.shape[0], plan.rows, *y.shape[2:])
    for rows, part in parts:
        y = y.index_copy(1, rows, part)
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))


def _weight(values: Tensor, plan: Plan) -> Tensor:
    return values[: plan.nnz].reshape(plan.nnz, *plan.shape[1:])
