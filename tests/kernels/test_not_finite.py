"""NaN and inf where no weight is stored: what docs/kernels.md says of each kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde

BAD = [torch.inf, torch.nan]


def layer(kind, kernel, pattern):
    torch.manual_seed(0)
    dense = nn.Linear(16, 16) if kind == "linear" else nn.Conv2d(16, 16, 3, padding=1)
    sparse = spfde.sparsify(nn.Sequential(nn.Identity(), dense), pattern=pattern, distribution={"1": 0.75})[1]
    sparse.kernel = kernel
    return sparse


def run(sparse, x, dy):
    """Where y, dx and dvalues, scattered, are not finite."""
    x = x.clone().requires_grad_()
    y = sparse(x)
    dx, dvalues = torch.autograd.grad(y, (x, sparse.values), dy)
    return [~t.isfinite() for t in (y, dx)], dvalues


def touched(sparse, where, backward):
    """Where a stored weight leads from a place that is not finite."""
    weight = (sparse.to_dense().weight != 0).double()
    if weight.dim() == 2:
        return (where.double() @ (weight if backward else weight.T)) > 0
    return (F.conv_transpose2d if backward else F.conv2d)(where.double(), weight, padding=1) > 0


def inputs(kind):
    shape = (8, 16) if kind == "linear" else (8, 16, 6, 6)
    return torch.randn(shape), torch.randn(shape)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_native_products_read_stored_places_alone(kind, pattern, value):
    sparse = layer(kind, "native", pattern)
    for place in ("x", "dy"):
        x, dy = inputs(kind)
        bad = torch.zeros_like(x, dtype=torch.bool)
        bad[1, 2] = True
        (x if place == "x" else dy)[bad] = value
        (y, dx), dvalues = run(sparse, x, dy)
        assert torch.equal(y if place == "x" else dx, touched(sparse, bad, place == "dy"))
        assert not (dx if place == "x" else y).any()
        assert 0 < (~dvalues.isfinite()).sum() < dvalues.numel()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kernel", ["dense", "reference"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dense_products_make_nan_of_a_zero_times_inf(kind, kernel, value):
    sparse = layer(kind, kernel, "unstructured")
    x, dy = inputs(kind)
    x[1, 2] = value
    (y, dx), dvalues = run(sparse, x, dy)
    assert y[1].all() and not y[0].any() and not dx.any()
    assert 0 < (~dvalues.isfinite()).sum() < dvalues.numel()
