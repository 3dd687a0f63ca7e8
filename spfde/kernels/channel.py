"""Whole outputs stored or not (pattern "channel"): a smaller dense product, torch's own, its outputs put in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spfde.kernels.clock import timed
from spfde.sparse.plan import Plan


def applies(plan: Plan, kernel: str, dtype: torch.dtype) -> bool:
    """Whether this route runs: wherever whole outputs are stored, unless another kernel is forced or it is float64.

    As `dispatch` says, but without asking it: this is traced under torch.compile.
    """
    return plan.kept is not None and kernel not in ("dense", "reference", "triton") and dtype != torch.float64


@timed
def compute(product: Callable[[Tensor], Tensor], values: Tensor, plan: Plan, bias: Tensor | None) -> Tensor:
    """Y [batch, out, ...], the bias everywhere; `product` maps the weight of the kept outputs to their outputs.

    values: [capacity, 1, cols].
    """
    y = product(values[: plan.nnz].reshape(plan.nnz, *plan.shape[1:]))
    y = y.new_zeros(y.shape[0], plan.rows, *y.shape[2:]).index_copy(1, plan.kept, y)
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))
