"""The kernel "reference": plain torch on the dense weight, differentiable to any order, in any precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.dense import Dense, convolution
from spfde.kernels.registry import Composite, register
from spfde.kernels.scatter import dense_weight, to_dense
from spfde.sparse.kernel_index import KernelIndex, Window, places_of
from spfde.sparse.plan import Plan


def spmm_ref(x: Tensor, values: Tensor, index: KernelIndex, rows: int, bias: Tensor | None = None) -> Tensor:
    """y = X W^T + bias in plain torch, differentiable to any order.

    x: [..., cols]. values: as `Plan.arrange` gives them. Returns [..., rows].
    """
    return F.linear(x, to_dense(values, index, (rows, x.shape[-1])), bias)


def sddmm_ref(dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(dY^T X at the stored places, column sums of dY) in plain torch.

    dy: [batch, rows]. x: [batch, cols]. block: R and C. Returns [-1, R, C] with 0 where nothing is stored, and [rows].
    """
    sums = F.pad((dy.t() @ x).reshape(-1), (0, 1))
    places = places_of(index, (dy.shape[1], x.shape[1]))
    return sums[places.long()].view(-1, *block), dy.sum(0)


def apply(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The op with a dense weight: a linear layer for [out, in], else a convolution."""
    return F.linear(x, weight, bias) if weight.dim() == 2 else convolution(x, weight, bias, window)


def compute(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The op of a plan, differentiable to any order until its topology moves."""
    return apply(x, dense_weight(plan.arrange(values), plan), bias, plan.window)


class Reference(Dense):
    """Everything on the dense weight, and differentiated by torch."""

    name = "reference"

    def composite(self, plan: Plan) -> Composite:
        """Always: its gradients are torch's own."""
        return compute


register(Reference())
