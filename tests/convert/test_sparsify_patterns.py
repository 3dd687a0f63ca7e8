"""sparsify with every pattern: exact counts, which blocks are stored, and what contradicts a pattern."""

import copy

import pytest
import torch
from torch import nn

import spfde
from spfde.nn import SparseLayer

PATTERNS = ["unstructured", "block:4x1", "block:4x4", "block:1x4", "2:4", "fan-in", "channel"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 12, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def layers(model) -> dict[str, SparseLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("init", ["random", "magnitude"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_are_exact_in_blocks(pattern, init):
    model = spfde.sparsify(net(), None if pattern == "2:4" else 0.7, pattern=pattern, init=init)
    expected = {
        "unstructured": {"2": 324, "5": 3600},
        "block:4x1": {"2": 81, "5": 900},
        "block:4x4": {"2": 24, "5": 225},  # 3 x (3 x 9) and 10 x 75 blocks
        "block:1x4": {"2": 97, "5": 900},
        "2:4": {"2": 12 * 9 * 6, "5": 6000},  # 10 channels: groups of 4, 4 and 2
        "fan-in": {"2": 324, "5": 3600},
        "channel": {"2": 4, "5": 12},
    }[pattern]
    assert {name: layer.nnz for name, layer in layers(model).items()} == expected
    plain = spfde.densify(copy.deepcopy(model))
    torch.testing.assert_close(model(X), plain(X))


@pytest.mark.parametrize("pattern", ["block:4x1", "fan-in", "channel"])
@pytest.mark.parametrize("distribution", ["erk", "global", {"2": 0.5, "5": 0.9}])
def test_every_distribution(pattern, distribution):
    model = spfde.sparsify(net(), 0.8, pattern=pattern, distribution=distribution)
    found = layers(model)
    if isinstance(distribution, dict):
        assert {n: m.nnz for n, m in found.items()} == {n: round((1 - distribution[n]) * m.grid.size)
                                                       for n, m in found.items()}  # fmt: skip
        return
    assert set(found) == {"0", "2", "5", "7"}
    total, stored = (sum(size) for size in zip(*((m.grid.size, m.nnz) for m in found.values()), strict=True))
    assert abs(stored - 0.2 * total) <= (0.5 if distribution == "global" else 0.15 * total)


def test_the_default_sparsity_is_the_patterns_own():
    assert layers(spfde.sparsify(net()))["5"].sparsity == pytest.approx(0.9)
    assert layers(spfde.sparsify(net(), pattern="2:4"))["5"].sparsity == pytest.approx(0.5)
    assert layers(spfde.sparsify(net(), 0.667, pattern="1:3"))["5"].sparsity == pytest.approx(2 / 3)
    named = spfde.sparsify(net(), pattern="1:4", distribution={"5": 0.75})
    assert {n: m.nnz for n, m in layers(named).items()} == {"5": 3000}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(sparsity=0.9, pattern="2:4"), "expected sparsity 0.5, which pattern '2:4' fixes, got 0.9, try leaving"),
        (dict(pattern="1:4", distribution={"5": 0.5}), "expected sparsity of '5' 0.75, which pattern '1:4' fixes, got"),
        (dict(pattern="2:4", distribution="erk"), "expected distribution 'uniform', as pattern '2:4' .*got 'erk'"),
        (dict(pattern="block:4"), "expected pattern 'unstructured', 'block:RxC'.*got 'block:4'"),
    ],
)
def test_contradictions_are_refused_and_the_model_is_left_alone(options, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        spfde.sparsify(model, **options)
    assert not layers(model)


def test_blocks_that_would_span_two_groups_are_refused_by_name():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 4, 1))
    with pytest.raises(ValueError, match="'1': expected outputs per group to be a multiple of 4 .*got 3, try"):
        spfde.sparsify(model, 0.5, pattern="block:4x1")
    assert not layers(model)
    assert set(layers(spfde.sparsify(model, 0.5, pattern="block:4x1", exclude=["1"]))) == {"2"}


def test_magnitude_sums_over_a_block():
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[9.0, 0, 3, 3], [0, 0, 3, 3], [1, 1, -5, 0], [1, 1, 0, 5]]))
    layer = spfde.sparsify(copy.deepcopy(linear), 0.5, pattern="block:2x2", init="magnitude")
    assert layer.positions().tolist() == [1, 3]
    layer = spfde.sparsify(copy.deepcopy(linear), 0.5, pattern="channel", init="magnitude")
    assert layer.positions().tolist() == [0, 2]
    layer = spfde.sparsify(copy.deepcopy(linear), 0.5, pattern="fan-in", init="magnitude")
    assert layer.positions().tolist() == [0, 2, 6, 7, 8, 10, 12, 15]
    layer = spfde.sparsify(copy.deepcopy(linear), pattern="1:2", init="magnitude")
    assert layer.positions().tolist() == [0, 2, 4, 6, 8, 10, 12, 15]


def test_the_remainder_of_a_fan_in_goes_to_the_first_outputs():
    layer = spfde.sparsify(nn.Linear(9, 7), 1 - 17 / 63, pattern="fan-in")
    assert layer.mask().sum(1).tolist() == [3, 3, 3, 2, 2, 2, 2]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_equals_the_masked_dense_model(pattern):
    sparse = spfde.sparsify(net(), None if pattern == "2:4" else 0.6, pattern=pattern)
    dense = spfde.densify(copy.deepcopy(sparse))
    masks = {name: layer.mask() for name, layer in layers(sparse).items()}
    a, b = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for m in (sparse, dense))
    for _ in range(4):
        for model, optimizer in ((sparse, a), (dense, b)):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            if model is dense:
                for name, mask in masks.items():
                    dense.get_submodule(name).weight.grad *= mask
            optimizer.step()
    torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)


def test_summary_counts_weights_and_names_the_pattern():
    model = spfde.sparsify(net(), 0.75, pattern="block:4x4")
    model(X)
    row = spfde.summary(model).rows[2]
    assert (row.pattern, row.nnz) == ("block:4x4", model[5].stored)
    assert row.nnz == 16 * model[5].nnz
    assert row.sparsity == pytest.approx(0.75, abs=1e-3)
