"""Representations and masks compared: against direct formulas in float64, and what must not change a figure."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from spfde.analysis import cka, gram, hsic1, mask_similarity, minibatch_cka, sp_loss
from spfde.nn import SparseLinear


def hsic_by_quadruples(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al.'s U-statistic as it is defined: a mean over all ordered quadruples of different samples."""
    n = len(k)
    index = np.indices((n,) * 4).reshape(4, -1)
    i, j, q, r = index[:, [len(set(each)) == 4 for each in index.T]]
    return float(np.mean(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])))


def test_hsic_is_the_mean_over_quadruples():
    a, b = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    k, m = a @ a.T, b @ b.T
    assert hsic1(k, m) == pytest.approx(hsic_by_quadruples(k.numpy(), m.numpy()), rel=1e-10)
    assert hsic1(gram(a), gram(b)) == pytest.approx(hsic1(k, m), rel=1e-10)  # centring does not show


@pytest.mark.parametrize("batch_size", [None, 4, 6, 50])
def test_cka_is_the_ratio_of_averages_over_minibatches(batch_size):
    a = torch.randn(15, 3, 4, 4)
    b = torch.tanh(a.flatten(1) @ torch.randn(48, 6)) + 0.3 * torch.randn(15, 6)
    sizes = {None: [15], 4: [5, 5, 5], 6: [8, 7], 50: [15]}[batch_size]
    sums = np.zeros(3)
    for x, y in zip(a.double().flatten(1).split(sizes), b.double().split(sizes), strict=True):
        k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
        sums += [hsic_by_quadruples(*pair) for pair in ((k, m), (k, k), (m, m))]
    assert cka(a, b, batch_size) == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-5)


def test_what_cka_does_not_see():
    a, b = torch.randn(40, 6), torch.randn(40, 9)
    b[:, :6] += 2 * a
    turned = 3 * b @ torch.linalg.qr(torch.randn(9, 9)).Q + 100 * torch.randn(9)
    assert cka(a, a) == pytest.approx(1) and cka(a, b) == pytest.approx(cka(b, a)) == pytest.approx(cka(a, turned))
    assert cka(a, b) < 0.95
    same = torch.randperm(40)
    assert cka(a[same], b[same]) == pytest.approx(cka(a, b))


def test_minibatches_tend_to_the_value_of_the_whole_and_independence_to_zero():
    a = torch.randn(1600, 8)
    mixed = a + torch.randn(1600, 8)
    whole = cka(a, mixed)
    assert cka(a, mixed, 20) == pytest.approx(whole, abs=0.04)  # the biased estimate is 0.15 above
    assert abs(cka(a, torch.randn(1600, 8), 20)) < 0.04


def test_cka_of_what_is_constant_has_no_value():
    assert math.isnan(cka(torch.randn(8, 3), torch.ones(8, 3)))


def test_sp_loss_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [1.0]])
    # rows of Gram matrices at length 1: the identity; and 1/sqrt(2) everywhere
    r = 1 / math.sqrt(2)
    assert sp_loss(a, b).item() == pytest.approx((2 * (1 - r) ** 2 + 2 * r**2) / 4)


def test_sp_loss_against_float64_and_what_it_does_not_see():
    a, b = torch.randn(12, 3, 5, 5), torch.randn(12, 7)
    x, y = (functional.normalize(t.double().flatten(1) @ t.double().flatten(1).T, dim=1) for t in (a, b))
    assert sp_loss(a, b).item() == pytest.approx(((x - y) ** 2).sum().item() / 144, rel=1e-5)
    turn = torch.linalg.qr(torch.randn(7, 7)).Q
    assert sp_loss(a, 4 * b @ turn).item() == pytest.approx(sp_loss(a, b).item(), rel=1e-4)
    assert sp_loss(b, 4 * b @ turn).item() == pytest.approx(0, abs=1e-10)
    assert sp_loss(a.bfloat16(), b).dtype == torch.float32
    b = b.double().requires_grad_()
    assert torch.autograd.gradcheck(sp_loss, (a.double(), b))


def test_mask_similarity_by_hand():
    a = torch.tensor([[5.0, 0, -3, 1], [0, 2, 0, 0]])
    b = torch.tensor([[-1.0, 0, 4, 0], [6, 0, 0, 2]])
    assert mask_similarity(a, b) == 2 / 4  # (0, 0) and (0, 2) of four
    assert mask_similarity(a, b, top=0.5) == 1 / 2  # 5 and -3 against 4 and 6
    assert mask_similarity(a, b, top=0.1) == 0  # 5 against 6
    assert mask_similarity(a != 0, b != 0) == 2 / 4
    assert mask_similarity(a, a, top=0.3) == 1 and mask_similarity(a, torch.zeros(2, 4)) == 0
    assert mask_similarity(torch.zeros(3), torch.zeros(3)) == 1
    assert mask_similarity(torch.ones(4), torch.tensor([1.0, 1, 0, 0])) == 2 * 2 / 6


def test_mask_similarity_of_layers_sees_stored_zeros():
    masks = [torch.randperm(200).view(10, 20) < 40 for _ in range(2)]
    layer, other = (SparseLinear.from_dense(nn.Linear(20, 10), mask) for mask in masks)
    with torch.no_grad():
        layer.values[:7] = 0
    assert mask_similarity(layer.mask(), other.mask()) == int((masks[0] & masks[1]).sum()) / 40
    assert mask_similarity(layer.dense_weight(), layer.dense_weight(), top=0.5) == 1


A = torch.randn(8, 3)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: cka(A, A[:5]), ValueError, "a and b of the same samples, got 8 and 5"),
        (lambda: cka(A[:3], A[:3]), ValueError, r"a \[n, ...\] of at least 4 samples, got \[3, 3\]"),
        (lambda: cka(A, [1.0]), TypeError, r"b as a floating point tensor \[n, ...\], got list"),
        (lambda: cka(A.long(), A), TypeError, "a as a floating point tensor .* got torch.int64"),
        (lambda: cka(A, A, 3), ValueError, "batch_size to be an integer >= 4, got 3"),
        (lambda: cka(A, A, 8.0), ValueError, "batch_size to be an integer"),
        (lambda: minibatch_cka([]), ValueError, "at least one minibatch, got none"),
        (lambda: minibatch_cka([(A, A), (A, A[:3])]), ValueError, "b .* of at least 4 samples"),
        (lambda: sp_loss(A, A[:, 0]), ValueError, r"b \[n, ...\] of at least 1 samples, got \[8\]"),
        (lambda: mask_similarity(A, A.T), ValueError, r"masks of one shape, got \[8, 3\] and \[3, 8\]"),
        (lambda: mask_similarity(A, A, 0), ValueError, r"top in \(0, 1\], got 0"),
        (lambda: mask_similarity(A, A, "half"), ValueError, r"top in \(0, 1\]"),
        (lambda: mask_similarity(A, A > 0, 0.5), TypeError, "b as a weight with top=0.5, got a bool mask"),
        (lambda: mask_similarity(nn.Linear(4, 4), A), TypeError, "a as a tensor, got Linear"),
    ],
)
def test_refusals(call, kind, words):
    with pytest.raises(kind, match=f"expected {words}.*; try"):
        call()
