"""MEST's elastic mutation: literal masks, counts, optimizer state, determinism, resume."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from spfde import sparsify
from spfde.nn import SparseLinear
from spfde.topology import MEST
from spfde.topology.schedule import stairs


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 36, 20),
        nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip
    return sparsify(model, 0.7, distribution="erk")


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def train_step(model, optimizer, seed):
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("seed", range(6))
def test_one_update_by_hand(seed):
    """|w| = 4 1 3 2 at positions 1 2 5 7 of 8: half of the four drop (1 and 2), two come, one dropped or not."""
    linear = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 4, 1, 0], [0, -3, 0, 2]]))
    layer = SparseLinear.from_dense(linear)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    optimizer.state[layer.values]["momentum_buffer"] = torch.tensor([10.0, 20, 30, 40]).view(4, 1, 1)
    topology = MEST(layer, optimizer, total_steps=100, every=1, drop_fraction=0.5, seed=seed)
    assert topology.step()
    drawn = set(layer.positions().tolist()) - {1, 5}  # from 0 2 3 4 6 7: a dropped one may come back, at 0
    expected = torch.zeros(8)
    expected[[1, 5]] = torch.tensor([4.0, -3.0])
    momentum = dict(zip(layer.positions().tolist(), optimizer.state[layer.values]["momentum_buffer"].view(-1).tolist(),
                        strict=True))  # fmt: skip
    assert torch.equal(layer.dense_weight().view(-1), expected)
    assert len(drawn) == 2
    assert momentum == {1: 10.0, 5: 30.0, **dict.fromkeys(drawn, 0.0)}


def eight(*first):
    """A layer of eight weights, of which the first are stored."""
    linear = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[*first, *[0.0] * (8 - len(first))]]))
    return SparseLinear.from_dense(linear)


def test_mest_soft_trains_above_its_target():
    """Two of eight, half as many more: 3, then (from 9/16 on) 2 + a quarter of 2 = 2, and the largest two stay."""
    layer = eight(4.0, 3)
    topology = MEST(
        layer, torch.optim.SGD(layer.parameters(), lr=0.0), total_steps=16, every=4, drop_fraction=0.5, soft=True
    )
    assert list(layer.values.shape) == [3, 1, 1]
    counts = []
    for _ in range(16):
        topology.step()
        counts.append(layer.nnz)
    assert counts == [2] * 3 + [3] * 8 + [2] * 5
    assert layer.dense_weight().tolist() == [[4, 3, 0, 0, 0, 0, 0, 0]]


def test_mest_soft_ends_at_its_target_even_without_a_late_update():
    layer = eight(4.0, 3)
    topology = MEST(
        layer, torch.optim.SGD(layer.parameters(), lr=0.0), total_steps=16, every=5, drop_fraction=0.5, soft=True
    )
    moved = [topology.step() for _ in range(8)]
    assert layer.nnz == 3 and sum(moved) == 1
    topology.schedule = replace(topology.schedule, every=100)
    assert [topology.step() for _ in range(8)] == [False] * 7 + [True]
    assert layer.nnz == 2


def test_the_gradient_counts_with_lam():
    linear = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, 1, 0, 0]]))
    layer = SparseLinear.from_dense(linear)
    topology = MEST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=9, drop_fraction=0.5, lam=10.0)
    with pytest.raises(ValueError, match="expected gradients at an update.*zero_grad"):
        topology.update()
    layer.values.grad = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    topology.update()
    assert 1 in layer.positions().tolist()  # 1 + 10 * 1 beats 2
    assert 0 not in layer.positions().tolist() or layer.dense_weight()[0, 0] == 0


def test_settle_prunes_down_to_the_target_by_magnitude():
    model = net()
    topology = MEST(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=100)
    layer = topology.layers["4"]
    weight = layer.dense_weight().abs().view(-1)
    topology.target["4"] = layer.nnz - 10
    topology.settle(model)
    smallest = weight[weight > 0].sort().values[:10]
    assert layer.nnz == topology.target["4"]
    assert float(layer.dense_weight().abs().view(-1)[layer.positions()].min()) > float(smallest[-1])


def test_the_blocks_with_the_lowest_sums_are_dropped():
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[9.0, 0, 3, 3], [1, 1, 3, 3], [2, 2, 5, 1], [2, 2, 1, 5]]))
    layer = sparsify(linear, 0.25, pattern="block:2x2", init="magnitude")
    assert layer.positions().tolist() == [0, 1, 3]
    topology = MEST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=9, drop_fraction=0.4, seed=0)
    kept = layer.dense_weight()
    assert topology.update()
    assert {1, 3} < set(layer.positions().tolist())
    # Sums 11, 12, 12: the block at position 0 goes; its place or the free one, 2, is grown at 0.
    assert set(layer.positions().tolist()) - {1, 3} <= {0, 2}
    assert torch.equal(layer.dense_weight()[:, 2:], kept[:, 2:])
    assert not layer.dense_weight()[:, :2].any()
    assert topology.reason == "MEST moved 4 weights at step 0"


def test_a_full_group_is_left_alone():
    """1:2 on three inputs: the last group has one member and is full, its weight has nowhere to go."""
    linear = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[5.0, 4, 0.1], [5, 4, 0.1]]))
    layer = sparsify(linear, pattern="1:2", init="magnitude")
    assert layer.positions().tolist() == [0, 2, 3, 5]
    topology = MEST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=9, drop_fraction=1.0)
    for _ in range(5):
        topology.update()
        assert torch.equal(layer.dense_weight()[:, 2], torch.tensor([0.1, 0.1]))
        assert layer.mask()[:, :2].sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("pattern", ["block:4x1", "fan-in"])
def test_settle_prunes_to_the_target_within_the_pattern(pattern):
    model = sparsify(nn.Sequential(nn.Conv2d(8, 12, 3), nn.Linear(22, 4)), 0.7, pattern=pattern, distribution="erk")
    topology = MEST(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=100)
    layer = topology.layers["0"]
    topology.target["0"] = layer.nnz - 10
    topology.settle(model)
    assert layer.nnz == topology.target["0"]
    assert type(layer).from_dense(layer.to_dense(), layer.mask(), pattern).nnz == layer.nnz


def test_a_fully_dense_or_empty_layer_has_nothing_to_move():
    for sparsity in (0.0, 1.0):
        layer = sparsify(nn.Linear(6, 5), sparsity)
        topology = MEST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=10, every=1)
        assert not topology.step()


def test_the_schedule_switches_at_nine_and_twelve_sixteenths():
    assert [stairs(step, 0.2, 160) for step in (0, 89, 90, 119, 120, 159)] == [0.2, 0.2, 0.1, 0.1, 0.0, 0.0]


def test_an_optimizer_built_before_sparsify_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, 0.5)
    with pytest.raises(ValueError, match="expected the optimizer to hold the values of '1'.*before spfde.sparsify"):
        MEST(model, optimizer, total_steps=10)


def test_a_dense_model_and_a_foreign_state_are_refused():
    with pytest.raises(ValueError, match=r"expected a model with sparse layers, got none, try spfde.sparsify"):
        MEST(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1)], lr=0.1), total_steps=10)
    model = net()
    topology = MEST(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=10)
    state = topology.state_dict()
    state["target"] = {"other": 3}
    with pytest.raises(ValueError, match="expected the state of a model with the same sparse layers"):
        topology.load_state_dict(state)
