"""What making a model sparse takes: memory follows what is stored."""

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

import spfde
from spfde.nn import SparseLinear
from spfde.profiling.memory import Allocation, _walk, highest
from spfde.sparse.drawn import random_positions
from spfde.sparse.pattern import Pattern


def taken(make) -> int:
    """The most bytes that torch's allocator held at any moment beyond what was there before."""
    with profile(profile_memory=True) as record:
        made = make()
    events = list(_walk(record.kineto_results.experimental_event_tree()))
    events = [e for e in events if type(e.extra_fields).__name__ == "_ExtraFields_Allocation"]
    events.sort(key=lambda e: e.start_time_ns)
    found = [Allocation(e.extra_fields.ptr, e.extra_fields.alloc_size, "", "") for e in events]
    assert made is not None
    return highest(found)


@pytest.mark.full
@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_sparsify_takes_at_most_two_and_a_half_dense_weights(init):
    model = nn.Sequential(nn.Linear(4000, 4000, bias=False))
    dense = 4 * 4000 * 4000
    peak = dense + taken(lambda: spfde.sparsify(model, 0.9, init=init, distribution="erk"))
    assert peak <= 2.5 * dense


def test_a_layer_larger_than_memory_is_born_sparse():
    size, stored = 110_000, 860_000
    sparsity = 1 - stored / size**2
    layer = SparseLinear(size, size, sparsity)
    assert layer.nnz == round((1 - sparsity) * size**2) == pytest.approx(stored, abs=1)
    positions = layer.positions()
    assert bool((positions.diff() > 0).all()) and int(positions[-1]) < size**2
    x = torch.randn(2, size, requires_grad=True)
    y = layer(x)
    assert y.detach().std().item() == pytest.approx(3**-0.5, rel=0.1)  # that of an nn.Linear
    y.sum().backward()
    assert layer.values.grad.abs().sum() > 0 and x.grad.abs().sum() > 0
    moved = positions.clone()
    moved[0] = 0
    source = layer.move_to(moved)  # a move takes no table of all places
    assert int((source < 0).sum()) == (0 if positions[0] == 0 else 1)


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x3", "fan-in", "channel"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_what_is_born_sparse_is_as_sparsify_would_count_it(pattern, sparsity):
    layer = SparseLinear(20, 13, sparsity, pattern=pattern, seed=3)
    twin = spfde.sparsify(nn.Linear(20, 13), sparsity, pattern=pattern)
    assert (layer.nnz, layer.shape) == (twin.nnz, twin.shape)
    assert layer.pattern.problem(layer.positions(), layer.grid) is None
    again, other = (SparseLinear(20, 13, sparsity, pattern=pattern, seed=seed) for seed in (3, 4))
    assert torch.equal(layer.mask(), again.mask()) and torch.equal(layer.values, again.values)
    assert sparsity in (0.0, 1.0) or not torch.equal(layer.values, other.values)
    given = SparseLinear(20, 13, sparsity, pattern=pattern, seed=torch.Generator().manual_seed(3))
    assert torch.equal(given.mask(), layer.mask()) and torch.equal(given.bias, layer.bias)
    x = torch.randn(4, 20)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    assert SparseLinear(20, 13, sparsity, pattern=pattern, bias=False, dtype=torch.float64).bias is None


def test_every_set_of_places_is_equally_likely():
    rule = Pattern.parse("unstructured")
    for pattern, count in ((rule, 3), (rule, 9), (Pattern.parse("fan-in"), 6)):
        grid = pattern.grid((3, 4))
        generator = torch.Generator().manual_seed(0)
        held = torch.zeros(12)
        for _ in range(2000):
            held[random_positions(pattern, grid, count, generator)] += 1
        expected = 2000 * count / 12
        assert (held - expected).abs().max() < 5 * (expected * (1 - count / 12)) ** 0.5


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((0, 4), "in_features and out_features"),
        ((4, 4, 1.5), "sparsity in .0, 1."),
        ((4, 4, 0.5, "2:4"), "expected another pattern, got '2:4', try spfde.sparsify"),
        ((4, 4, 0.5, "odd"), "expected pattern"),
    ],
)
def test_bad_arguments(arguments, words):
    *sizes, pattern = arguments if len(arguments) == 4 else (*arguments, "unstructured")
    with pytest.raises(ValueError, match=words):
        SparseLinear(*sizes, pattern=pattern)
