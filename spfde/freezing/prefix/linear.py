"""A frozen linear layer as a `Folded`: there is no norm to fold, what follows is computed where its product lies."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spfde.kernels.dtypes import through_dispatcher
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.spmm import spmm, spmm_with_epilogue
from spfde.kernels.triton import why_not
from spfde.nn import SparseLinear

LINEARS = (SparseLinear, nn.Linear)  # these very types: a subclass may do something else


class FoldedLinear:
    """x W^T + bias of a frozen layer; the weights are its own."""

    norm = None
    version = 0

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.sparse = isinstance(layer, SparseLinear)

    @property
    def key(self) -> str:
        """What settles the kernel of a sparse layer, "" for another."""
        return self.layer.dispatch_key if self.sparse else ""

    def refresh(self) -> None:
        """Nothing to fold."""

    def product(self, x: Tensor) -> Tensor:
        """The layer's output, in memory of its own."""
        layer = self.layer
        if not self.sparse:
            return F.linear(x, layer.weight, layer.bias)
        return spmm(x, layer.values, layer.plan, layer.bias, layer.dispatch_key)

    def with_epilogue(self, x: Tensor, residual: Tensor | None, act: str) -> Tensor | None:
        """act(product + residual) in the layer's kernel, None where that has no such end."""
        layer = self.layer
        if not self.sparse or through_dispatcher(x) or why_not(x.device.type) is not None:
            return None
        end = Epilogue(layer.bias, residual=residual, act=act)
        return spmm_with_epilogue(x, layer.values, layer.plan, lambda: end, layer.dispatch_key)
