"""Masks over frozen weights: what trains, what stays, exact counts, and the sparse layers at the end."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.nn import SparseLayer
from spfde.topology import EdgePopup, Piggyback


def net(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    ).to(dtype)


X = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(2))
SIZES = {"0": 108, "4": 240, "6": 30}


def train(masks, steps=20, lr=1.0):
    optimizer = torch.optim.SGD(masks.parameters(), lr, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(masks.model(X), Y)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_only_the_scores_train():
    model = net()
    cross_entropy(model(X), Y).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objects = {name: p for name, p in model.named_parameters()}
    popup = EdgePopup(model, 0.5)
    assert popup.model is model
    assert [p.shape for p in popup.parameters()] == [model[i].weight.shape for i in (0, 4, 6)]
    assert all(p.grad is None for p in objects.values())  # an older optimizer moves nothing
    first = {name: mask.clone() for name, mask in popup.masks().items()}
    start = cross_entropy(model(X), Y).item()
    assert train(popup) < start
    assert any(not torch.equal(first[name], mask) for name, mask in popup.masks().items())
    assert all(torch.equal(objects[name], before[name]) for name in before)
    assert not torch.equal(model[1].running_mean, torch.zeros(6))


def test_the_sparse_model_is_the_trained_one():
    dense = net()
    weights = {name: dense.get_submodule(name).weight.detach().clone() for name in SIZES}
    popup = EdgePopup(dense, 0.7)
    train(popup)
    dense.eval()
    masks, outputs = popup.masks(), dense(X).detach()
    model = popup.finish()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    assert {name: m.nnz for name, m in layers.items()} == {n: round(0.3 * size) for n, size in SIZES.items()}
    for name, layer in layers.items():
        assert torch.equal(layer.mask(), masks[name])
        assert torch.equal(layer.dense_weight(), weights[name] * masks[name])
    torch.testing.assert_close(model(X), outputs)
    assert all(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == set(spfde.sparsify(net(), 0.7, distribution="erk").state_dict())
    with pytest.raises(ValueError, match="expected masks in training, got a finished model"):
        popup.finish()


def test_gradients_go_straight_through_the_mask():
    """For y = (w * m(s)) x: dL/ds = dL/dw_used * w * sign(s), for kept and dropped weights alike."""
    layer = nn.Linear(6, 4, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    popup = EdgePopup(layer, 0.5, seed=3)
    (scores,) = popup.parameters()
    x, cotangent = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    mask = popup.masks()[""]
    assert torch.equal(layer.weight.detach(), weight * mask)
    sizes = scores.detach().abs()
    assert sizes[mask].min() >= sizes[~mask].max()
    (layer(x) * cotangent).sum().backward()
    torch.testing.assert_close(scores.grad, cotangent.T @ x * weight * scores.detach().sign())
    assert int((scores.grad[~mask] != 0).sum()) == 12


def test_piggyback_keeps_what_is_above_the_threshold():
    layer = nn.Linear(6, 4, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    masks = Piggyback(layer)
    (scores,) = masks.parameters()
    assert bool(masks.masks()[""].all())
    x, cotangent = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    (layer(x) * cotangent).sum().backward()
    torch.testing.assert_close(scores.grad, cotangent.T @ x * weight)
    with torch.no_grad():
        scores.view(-1)[[1, 5]] = torch.tensor([5e-3, -1.0], dtype=torch.float64)
    sparse = masks.finish()
    assert sorted({*range(24)} - {*sparse.positions().tolist()}) == [1, 5]
    assert torch.equal(sparse.dense_weight(), weight * sparse.mask())


def test_a_piggyback_head_trains_as_usual():
    model = net()
    before = copy.deepcopy(model.state_dict())
    masks = Piggyback(model, exclude=["6"])
    assert set(masks.masks()) == {"0", "4"}
    assert [tuple(p.shape) for p in masks.parameters()] == [(6, 2, 3, 3), (10, 24), (3, 10), (3,)]
    train(masks, lr=0.1)
    model = masks.finish()
    assert not torch.equal(model[6].weight, before["6.weight"])
    assert torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model[4].dense_weight(), before["4.weight"] * model[4].mask())


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("block:2x1", 0.5), ("fan-in", 0.75), ("1:4", 0.75), ("channel", 0.5)]
)
def test_patterns(pattern, sparsity):
    popup = EdgePopup(net(), sparsity, pattern=pattern)
    train(popup, steps=3)
    model = popup.finish()
    assert {m.pattern for m in model.modules() if isinstance(m, SparseLayer)} == {pattern}
    wanted = spfde.sparsify(net(), sparsity, pattern=pattern, distribution={n: sparsity for n in SIZES})
    assert [m.nnz for m in model.modules() if isinstance(m, SparseLayer)] == [wanted[i].nnz for i in (0, 4, 6)]


def test_signed_weights_have_one_magnitude():
    model = net()
    signs = model[0].weight.detach().sign()
    EdgePopup(model, signed=True)
    torch.testing.assert_close(model[0].parametrizations.weight.original, signs * (2 / 18) ** 0.5)


def test_seeds_and_checkpoints():
    first, same, other = (EdgePopup(net(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.masks()["4"], same.masks()["4"])
    assert not torch.equal(first.masks()["4"], other.masks()["4"])
    train(first, steps=2)
    other.model.load_state_dict(first.model.state_dict())
    assert all(torch.equal(first.masks()[name], other.masks()[name]) for name in SIZES)
    twin = copy.deepcopy(first.model)
    assert torch.equal(twin.eval()(X), first.model.eval()(X))


def test_what_was_frozen_before_stays_frozen_after():
    model = net()
    model[0].weight.requires_grad_(False)
    sparse = EdgePopup(model).finish()
    assert [p.requires_grad for p in sparse.parameters()] == [False, *[True] * 7]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: EdgePopup(m, 1.5), r"expected sparsity in \[0, 1\], got 1.5"),
        (lambda m: EdgePopup(m, 0.6, pattern="2:4"), "expected sparsity 0.5, which pattern '2:4' fixes, got 0.6"),
        (lambda m: EdgePopup(m, exclude=["nope"]), "expected exclude to be one of"),
        (lambda m: Piggyback(m, start=0.0), "expected start > threshold, got 0.0 and 0.005, try"),
        (lambda m: Piggyback(m, exclude=[nn.Linear, nn.Conv2d]), "expected at least one nn.Linear, nn.Conv1d"),
        (lambda m: EdgePopup(EdgePopup(m).model), "parametrized"),
    ],
)
def test_bad_arguments(make, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        make(model)
    if words != "parametrized":
        assert all(p.requires_grad for p in model.parameters())
        assert set(model.state_dict()) == set(net().state_dict())


def test_not_a_model():
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got int"):
        EdgePopup(3)
