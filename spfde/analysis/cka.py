"""Centred kernel alignment (CKA): how alike two representations of the same samples are."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from spfde.analysis.checks import check_samples

FEWEST = 4  # samples below which HSIC has no unbiased estimate


def cka(a: Tensor, b: Tensor, batch_size: int | None = None) -> float:
    """How alike two representations of the same samples are: 1 for the same, about 0 for independent ones.

    Linear CKA by unbiased estimates of HSIC, which may so leave [0, 1] a little. It does not change when either side is
    rotated, shifted or scaled as a whole, and needs no two layers of the same width. With `batch_size` the estimates
    are averaged over minibatches of at least that many samples, and memory is that of one minibatch.

    Args:
        a: activations [n, ...], everything behind the first dimension is features.
        b: activations [n, ...] of the same samples.
        batch_size: samples in a minibatch, at least 4; None: all at once.

    Returns:
        The alignment; nan where a side is the same for all samples.

    Raises:
        TypeError: `a` or `b` is no floating point tensor.
        ValueError: they are not of the same 4 or more samples, or batch_size is less than 4.

    Source: Nguyen, Raghu & Kornblith (ICLR 2021), "Do Wide and Deep Networks Learn the Same Things?", section 2.
    """
    check_samples(a, b, FEWEST)
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= FEWEST):
        raise ValueError(f"expected batch_size to be an integer >= {FEWEST}, got {batch_size!r}; try 64")
    parts = max(1, len(a) // (batch_size or len(a)))
    return minibatch_cka(zip(a.tensor_split(parts), b.tensor_split(parts), strict=True))


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """`cka` of representations that come in minibatches: pairs of activations [n, ...], n >= 4, of the same samples.

    Raises:
        TypeError: one of a pair is no floating point tensor.
        ValueError: a pair is not of the same 4 or more samples, or there is none.
    """
    sums, count = [0.0, 0.0, 0.0], 0
    for a, b in batches:
        check_samples(a, b, FEWEST)
        ours, theirs = gram(a), gram(b)
        for i, pair in enumerate(((ours, theirs), (ours, ours), (theirs, theirs))):
            sums[i] += hsic1(*pair)
        count += 1
    if not count:
        raise ValueError("expected at least one minibatch, got none; try a data loader that is not used up")
    return _ratio(*sums)


def gram_cka(a: Tensor, b: Tensor) -> float:
    """`cka` of two representations that are known by their Gram matrices [n, n], n >= 4: of `gram`, or any kernel's."""
    return _ratio(hsic1(a, b), hsic1(a, a), hsic1(b, b))


def gram(activations: Tensor) -> Tensor:
    """Inner products [n, n] of the samples' features, centred; at least float32.

    HSIC does not see the centring, but rounding does.
    """
    features = activations.detach().flatten(1)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    features = features - features.mean(0)
    return features @ features.T


def hsic1(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion from two Gram matrices [n, n], n >= 4.

    (tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 (1'KL1) / (n-2)) / (n(n-3)), both with a diagonal of zeros.

    Source: Song et al. (JMLR 2012), "Feature Selection via Dependence Maximization", equation 5.
    """
    n = len(a)
    k, m = (matrix.double() - matrix.double().diag().diag() for matrix in (a, b))
    rows, columns = k.sum(1), m.sum(1)
    sums = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return float(((k * m).sum() + sums - 2 * (rows @ columns) / (n - 2)) / (n * (n - 3)))


def _ratio(cross: float, ours: float, theirs: float) -> float:
    return cross / math.sqrt(ours * theirs) if ours > 0 and theirs > 0 else math.nan
