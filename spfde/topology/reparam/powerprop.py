"""Powerpropagation: weights as powers of what is trained, so that large ones learn faster and small ones stay small."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spfde.topology.layers import sparse_layers


class _Power(torch.autograd.Function):
    """Autograd's own gradient is NaN at 0 for alpha < 2, and dead slots are 0."""

    @staticmethod
    def forward(ctx, phi, alpha):
        ctx.save_for_backward(phi)
        ctx.alpha = alpha
        return phi * phi.abs().pow(alpha - 1)

    @staticmethod
    def backward(ctx, grad):
        (phi,) = ctx.saved_tensors
        return grad * ctx.alpha * phi.abs().pow(ctx.alpha - 1), None


class Powerprop(nn.Module):
    """w = phi |phi|^(alpha - 1), dL/dphi = alpha |phi|^(alpha - 1) dL/dw. phi and w of any one shape."""

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, phi: Tensor) -> Tensor:
        """Return w of phi."""
        return _Power.apply(phi, self.alpha)

    def inverse(self, w: Tensor) -> Tensor:
        """Return phi of w."""
        return w.sign() * w.abs().pow(1 / self.alpha)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"alpha={self.alpha}"


@torch.no_grad()
def powerpropagate(model: nn.Module, alpha: float = 2.0) -> nn.Module:
    """Trains every sparse layer of `model` through w = phi |phi|^(alpha - 1), in place, from the weights it has.

    `values` then is phi; `weight`, `dense_weight()` and `to_dense()` give w. A weight at 0 gets gradient 0 and stays
    there, so of the methods that move masks only GMP takes such layers. Source: Powerpropagation (2110.00296), alpha
    2 to 4.

    Raises:
        ValueError: alpha < 1, the model has no sparse layer, or one has a transform already.
    """
    if alpha < 1:
        raise ValueError(f"expected alpha >= 1, got {alpha}")
    for layer in sparse_layers(model, plain=True).values():
        layer.transform = Powerprop(alpha)
        layer.values.copy_(layer.transform.inverse(layer.values))
    return model
