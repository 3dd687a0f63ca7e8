"""The similarity-preserving loss: whether two networks find the same samples alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from spfde.analysis.checks import check_samples


def sp_loss(a: Tensor, b: Tensor) -> Tensor:
    """How differently two networks relate the samples of a batch: 0 where they find the same ones alike.

    ||G(a) - G(b)||_F^2 / n^2, where G has the inner products [n, n] of the samples' activations, each row scaled to
    length 1. Differentiable in both; computed in float32 at least.

    Args:
        a: activations [n, ...], everything behind the first dimension is features.
        b: activations [n, ...] of the same samples, of any width.

    Raises:
        TypeError: `a` or `b` is no floating point tensor.
        ValueError: they are not of the same samples.

    Source: Tung & Mori (ICCV 2019), "Similarity-Preserving Knowledge Distillation", equations 1 to 4.
    """
    check_samples(a, b, 1)
    return (similarities(a) - similarities(b)).square().sum() / len(a) ** 2


def similarities(activations: Tensor) -> Tensor:
    """How alike a network finds the samples of a batch: inner products [n, n], each row scaled to length 1."""
    features = activations.flatten(1)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return normalize(features @ features.T, dim=1)
