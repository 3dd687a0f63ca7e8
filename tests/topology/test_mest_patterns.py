"""MEST on structured patterns: counts per layer and per group, whole blocks, optimizer state, resume."""

import copy

import pytest
import torch
from torch import nn

from spfde import sparsify
from spfde.topology import MEST

PATTERNS = ["block:4x1", "block:4x4", "block:1x3", "2:4", "fan-in", "channel"]


def net(pattern, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 36, 22), nn.ReLU(),
        nn.Linear(22, 4),
    )  # fmt: skip
    return sparsify(model, None if pattern == "2:4" else 0.7, pattern=pattern)


def train_step(model, optimizer, seed):
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def per_group(layer):
    group = layer.pattern.groups(layer.grid)
    return torch.bincount(group[layer.positions()], minlength=int(group.max()) + 1)


def blocks(layer, stored):
    """[grid.size, R, C]: a tensor shaped like values at its blocks' places, 0 elsewhere."""
    out = torch.zeros(layer.grid.size, *layer.grid.block)
    out[layer.positions()] = stored.detach()[: layer.nnz]
    return out


@pytest.mark.parametrize("lam", [0.0, 2.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_blocks_and_state_through_training(pattern, lam):
    model = net(pattern)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    topology = MEST(model, optimizer, total_steps=24, every=2, drop_fraction=0.4, seed=1, lam=lam)
    groups = {name: per_group(layer) for name, layer in topology.layers.items()}
    identities, moved, changed = [id(p) for p in model.parameters()], 0, set()
    for step in range(24):
        train_step(model, optimizer, step)
        before = {}
        for name, layer in topology.layers.items():
            state = optimizer.state[layer.values]
            before[name] = layer.positions().tolist(), blocks(layer, layer.values), blocks(layer, state["exp_avg"])
        if not topology.step():
            continue
        moved += 1
        for name, layer in topology.layers.items():
            old, values, averages = before[name]
            new, average = blocks(layer, layer.values), blocks(layer, optimizer.state[layer.values]["exp_avg"])
            assert torch.equal(per_group(layer), groups[name])
            changed |= {name} if layer.positions().tolist() != old else set()
            for position in layer.positions().tolist():
                if position in old and new[position].any():
                    assert torch.equal(new[position], values[position])
                    assert torch.equal(average[position], averages[position])
                else:
                    assert not new[position].any()
                    assert not average[position].any()
            mask = layer.mask()
            assert type(layer).from_dense(layer.to_dense(), mask, pattern).nnz == layer.nnz  # still of the pattern
    assert moved == 8
    assert changed == set(topology.layers)
    assert [id(p) for p in model.parameters()] == identities


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
    model = net(pattern)
    topology = MEST(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=100)
    layer = topology.layers["2"]
    topology.target["2"] = layer.nnz - 10
    topology.settle(model)
    assert layer.nnz == topology.target["2"]
    assert type(layer).from_dense(layer.to_dense(), layer.mask(), pattern).nnz == layer.nnz


def run(pattern, stop=None):
    model = net(pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology = MEST(model, optimizer, total_steps=12, every=2, seed=5)
    for step in range(12):
        train_step(model, optimizer, step)
        topology.step()
        if step == stop:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), topology.state_dict()))
            model = net(pattern, 9)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            topology = MEST(model, optimizer, total_steps=12, every=2, seed=123)
            for part, state in zip((model, optimizer, topology), saved, strict=True):
                part.load_state_dict(state)
    return model.state_dict()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_resume_to_the_bit(pattern):
    whole, resumed = run(pattern), run(pattern, stop=4)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
