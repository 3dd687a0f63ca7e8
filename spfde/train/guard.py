"""A training that went wrong says where, and what to look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Diverged(FloatingPointError):
    """The loss became NaN or infinite; the weights of the last checkpoint are untouched."""


def suspect(model: nn.Module, images: Tensor) -> str:
    """Say what makes a loss NaN or infinite: the input, a parameter by name, or activations."""
    broken = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        return f"{len(broken)} of the batch's {len(images)} images hold NaN or infinity: look at the data set"
    # Not the buffers: this very forward pass has put an overflow into BatchNorm's statistics.
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"{name} holds NaN or infinity: the last step was too large, try a lower lr or more warmup"
    sizes = {name: p.detach().abs().max().item() for name, p in model.named_parameters() if p.numel()}
    largest = max(sizes, key=sizes.__getitem__)
    return (
        "images and weights are finite, the activations overflowed;"
        f" the largest weight is {sizes[largest]:.3g} in {largest}: try a lower lr or more warmup"
    )


def diverged(model: nn.Module, images: Tensor, loss: float, *, epoch: int, step: int, lr: float) -> Diverged:
    """Build the error for a loss that is not finite, at a step of an epoch (both from 0)."""
    return Diverged(
        f"expected a finite loss, got {loss} at epoch {epoch}, step {step} (both from 0), learning rate {lr:.3g}:"
        f" {suspect(model, images)}"
    )
