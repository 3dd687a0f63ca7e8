"""Layers of every pattern against float64 dense torch, their state, and masks that survive the way there and back."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spfde import sparsify
from spfde.nn import SparseConv2d, SparseLinear
from spfde.sparse.pattern import Pattern

PATTERNS = ["unstructured", "block:4x1", "block:4x4", "block:2x3", "block:1x4", "2:4", "1:3", "fan-in", "channel"]
LAYERS = {
    "linear": (lambda: nn.Linear(16, 12), (5, 16)),
    "ragged linear": (lambda: nn.Linear(13, 7), (2, 3, 13)),
    "no bias": (lambda: nn.Linear(5, 9, bias=False), (4, 5)),
    "conv": (lambda: nn.Conv2d(8, 8, 3, padding=1), (2, 8, 6, 7)),
    "ragged strided": (lambda: nn.Conv2d(5, 6, (3, 2), stride=2, padding=1), (3, 5, 9, 8)),
    "grouped": (lambda: nn.Conv2d(10, 8, 3, groups=2, dilation=2), (2, 10, 7, 8)),
    "pointwise": (lambda: nn.Conv2d(6, 10, 1), (2, 6, 5, 4)),
    "reflect": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 4)),
}
EACH = pytest.mark.parametrize("pattern", PATTERNS)


def make(name, pattern, seed=0):
    torch.manual_seed(seed)
    build, shape = LAYERS[name]
    return sparsify(build(), None if ":" in pattern and "x" not in pattern else 0.6, pattern=pattern), torch.randn(
        shape
    )


@EACH
@pytest.mark.parametrize("kernel", ["auto", "native", "dense", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_the_dense_one_with_zeros(name, pattern, kernel):
    layer, x = make(name, pattern)
    layer.kernel = kernel
    x.requires_grad_()
    exact, x64 = layer.to_dense().double(), x.detach().double().requires_grad_()
    y, y64 = layer(x), exact(x64)
    dy = torch.randn(y.shape)
    y.backward(dy)
    y64.backward(dy.double())
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=1e-5)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad.double(), exact.bias.grad, rtol=1e-5, atol=1e-4)
    grad = torch.zeros(layer.shape)
    grad.view(-1)[stored_places(layer)] = layer.values.grad[: layer.nnz].reshape(-1)[inside(layer)]
    torch.testing.assert_close(grad.double(), exact.weight.grad * layer.mask(), rtol=1e-5, atol=1e-4)
    assert not layer.values.grad[: layer.nnz].reshape(-1)[~inside(layer)].any()


def inside(layer):
    return (layer.grid.places(layer.positions()) < layer.shape.numel()).view(-1)


def stored_places(layer):
    return layer.grid.places(layer.positions()).view(-1)[inside(layer)]


@EACH
@pytest.mark.parametrize("name", ["ragged linear", "ragged strided"])
def test_what_is_stored(name, pattern):
    torch.manual_seed(0)
    dense = LAYERS[name][0]()
    weight = dense.weight.detach().clone()
    layer = sparsify(dense, None if pattern in ("2:4", "1:3") else 0.6, pattern=pattern)
    mask = layer.mask()
    assert layer.pattern == pattern
    assert layer.values.shape == (layer.nnz, *layer.grid.block)
    assert layer.stored == int(mask.sum())
    assert layer.sparsity == pytest.approx(1 - layer.stored / mask.numel())
    assert torch.equal(layer.dense_weight(), weight * mask)
    assert torch.equal(layer.weight, layer.dense_weight())
    again = type(layer).from_dense(layer.to_dense(), mask, pattern)
    assert torch.equal(again.values, layer.values)
    assert torch.equal(again.col, layer.col)
    direction = torch.randn(layer.shape)
    (layer.weight * direction).sum().backward()
    assert torch.equal(layer.values.grad.reshape(-1)[inside(layer)], direction.view(-1)[stored_places(layer)])


@pytest.mark.parametrize("pattern", ["unstructured", "block:3x2", "block:1x4", "channel"])
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(), (3, 2)]), st.integers(0, 999))
def test_a_mask_comes_back_as_it_went_in(pattern, outputs, channels, kernel, seed):
    shape = (outputs, channels, *kernel)
    grid = Pattern.parse(pattern).grid(shape)
    kept = torch.rand(grid.size, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask = torch.zeros(grid.weights + 1, dtype=torch.bool)
    mask[grid.places(kept.nonzero().view(-1))] = True
    mask = mask[:-1].view(shape)
    if kernel:
        layer = SparseConv2d.from_dense(nn.Conv2d(channels, outputs, kernel), mask, pattern)
    else:
        layer = SparseLinear.from_dense(nn.Linear(channels, outputs), mask, pattern)
    assert torch.equal(layer.mask(), mask)
    assert layer.nnz == int(kept.sum())
    assert layer.stored == int(mask.sum())


def test_no_mask_takes_the_nonzeros():
    dense = nn.Linear(6, 4)
    with torch.no_grad():
        dense.weight[:2, 3] = 0
    layer = SparseLinear.from_dense(dense, pattern="block:2x1")
    assert torch.equal(layer.mask(), dense.weight != 0)
    assert layer.nnz == 11
    with torch.no_grad():
        dense.weight[2, 5] = 0
    with pytest.raises(
        ValueError, match="expected a mask of whole blocks .*got 1 of 2 .*outputs 2 to 3, inputs 5, try"
    ):
        SparseLinear.from_dense(dense, pattern="block:2x1")


@EACH
@pytest.mark.parametrize("name", ["ragged linear", "ragged strided"])
def test_copies_and_state_carry_the_pattern(name, pattern):
    layer, x = make(name, pattern)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.pattern == pattern
        assert torch.equal(other(x), y)
    other, _ = make(name, pattern, seed=1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask(), layer.mask())
    assert torch.equal(other(x), y)
    other, _ = make(name, pattern, seed=2)
    other.load_state_dict(layer.to_dense().state_dict())  # a dense checkpoint
    assert torch.equal(other.dense_weight(), layer.dense_weight())
    assert torch.equal(other(x), y)
    layer.double().float()
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("pattern", ["2:4", "fan-in", "channel", "block:4x1"])
def test_a_dense_checkpoint_with_zeros_among_its_stored_values_obeys_the_pattern(pattern):
    layer, x = make("linear", pattern)
    other, _ = make("linear", pattern, seed=1)
    with torch.no_grad():
        other.values[: other.nnz : 3] = 0
    layer.load_state_dict(other.to_dense().state_dict())
    assert torch.equal(layer.dense_weight(), other.dense_weight())
    assert layer.nnz == other.nnz
    assert layer.pattern.problem(layer.positions(), layer.grid) is None
    torch.testing.assert_close(layer(x), other(x))


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_changes():
    layer, x = make("linear", "block:4x4")
    y = layer(x)
    with pytest.raises(RuntimeError, match=r"expected a dense weight with \d+ blocks that are not zero, got 12"):
        layer.load_state_dict({"weight": torch.randn(12, 16), "bias": torch.zeros(12)})
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"expected values of shape \[5, 4, 4\], got \[5, 1, 1\]"):
        layer.load_state_dict({**state, "bias": state["bias"] + 1, "values": torch.randn(layer.nnz, 1, 1)})
    assert torch.equal(layer(x), y)
    for pattern in ("2:4", "fan-in"):
        layer, x = make("linear", pattern)
        y, count = layer(x), layer.nnz
        crowded = torch.zeros(192)
        crowded[:count] = 1
        with pytest.raises(RuntimeError, match=f"expected .* stored weights in .*pattern '{pattern}'"):
            layer.load_state_dict({"weight": crowded.view(12, 16), "bias": torch.zeros(12)})
        state = {**layer.state_dict(), "bias": torch.ones(12)}
        state["row_ptr"] = torch.tensor([0] + [min(16 * (r + 1), count) for r in range(12)], dtype=torch.int32)
        state["col"] = (torch.arange(count) % 16).to(torch.int32)
        with pytest.raises(RuntimeError, match=f"expected .* stored weights in .*pattern '{pattern}'"):
            layer.load_state_dict(state)
        assert torch.equal(layer(x), y)


def test_a_block_with_zeros_in_it_loads_from_a_dense_checkpoint():
    layer, x = make("linear", "block:4x4")
    with torch.no_grad():
        layer.values[0, 1, 2] = 0
    other, _ = make("linear", "block:4x4", seed=1)
    other.load_state_dict(layer.to_dense().state_dict())
    assert torch.equal(other.mask(), layer.mask())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("pattern", ["block:4x1", "block:4x4", "block:1x4", "channel"])
@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("name", ["ragged linear", "ragged strided", "grouped"])
def test_a_move_carries_whole_blocks_and_dead_slots_stay_zero(name, pattern, kernel):
    layer, x = make(name, pattern)
    layer.kernel = kernel
    blocks, old = layer.grid.cut(layer.dense_weight()), layer.positions()
    free = torch.ones(layer.grid.size, dtype=torch.bool)
    free[old] = False
    new = torch.cat([old[2:], free.nonzero().view(-1)[:1]]).sort().values
    source = layer.move_to(new)
    after = layer.grid.cut(layer.dense_weight())
    for position in range(layer.grid.size):
        kept = position in old[2:].tolist()
        assert torch.equal(after[position], blocks[position] if kept else torch.zeros_like(after[0]))
    assert int((source < 0).sum()) == 2  # the newcomer and the slot left over
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    layer(x).square().sum().backward()
    assert not layer.values.grad[layer.nnz :].any()


@pytest.mark.parametrize("pattern", ["2:4", "fan-in"])
def test_a_move_that_violates_the_pattern_is_refused_and_nothing_changes(pattern):
    layer, x = make("linear", pattern)
    y, mask = layer(x), layer.mask()
    with pytest.raises(ValueError, match=f"expected .* stored weights in .*pattern '{pattern}'"):
        layer.move_to(torch.arange(layer.nnz))
    assert torch.equal(layer.mask(), mask)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("pattern", ["block:4x4", "block:1x4"])
@pytest.mark.parametrize("name", ["ragged linear", "ragged strided"])
def test_what_reaches_outside_the_weight_never_counts(name, pattern, kernel):
    layer, x = make(name, pattern)
    layer.kernel = kernel
    y = layer(x)
    with torch.no_grad():
        layer.values.view(-1)[~inside(layer)] = 7.0
    assert torch.equal(layer(x), y)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0)
    layer(x).square().sum().backward()
    optimizer.step()
    assert (layer.values.view(-1)[~inside(layer)] == 7.0).all()


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("pattern", ["block:4x1", "channel"])
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("name", ["ragged linear", "ragged strided"])
def test_empty_and_full(name, pattern, kernel, sparsity):
    torch.manual_seed(0)
    layer, x = sparsify(LAYERS[name][0](), sparsity, pattern=pattern), torch.randn(LAYERS[name][1], requires_grad=True)
    layer.kernel = kernel
    assert layer.sparsity == sparsity
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    layer(x).square().sum().backward()
    assert layer.values.grad.shape == layer.values.shape


def test_channel_runs_the_smaller_product_and_says_so():
    layer, x = make("conv", "channel")
    layer(x)
    assert (layer.kernel, layer.choice.reason) == ("native", "a dense product over the stored outputs alone")
    layer.kernel = "dense"
    assert (layer.kernel, layer.choice.reason) == ("dense", "forced by layer.kernel")


def test_repr_names_the_pattern():
    assert "pattern=block:4x1" in repr(make("conv", "block:4x1")[0])
