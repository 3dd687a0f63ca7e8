"""A layer stops moving because it is frozen, ends at its target then, and moves again once it is unfrozen."""

import copy
import math

import pytest
import torch
from topology.networks import OPTIMIZERS, net, train_step
from topology.test_methods import LONG, SCHEDULED, SHRINKING, VARIANTS
from torch import nn

import spfde
from spfde.topology import GMP, MEST, SET, TopKAST


def stored(topology, *names):
    return {name: topology.layers[name].mask() for name in names}


def equal(masks, others):
    return all(torch.equal(mask, others[name]) for name, mask in masks.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_layer_moves_settles_stays_frozen_and_moves_again(name):
    """Layer "2" is settled and frozen, "4" frozen as it is; both are unfrozen at half of the training."""
    method, options = VARIANTS[name]
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = method(model, optimizer, total_steps=40, every=1, **options)

    def steps(first, last):
        """Whether layer "2" moved."""
        before = model[2].mask()
        moved = False
        for step in range(first, last):
            train_step(model, optimizer, step)
            topology.step()
            moved |= not torch.equal(model[2].mask(), before)
        return moved

    steps(0, 3)
    assert topology.settle(model[2]) == ["2"]
    assert model[2].nnz == topology.target["2"]
    spfde.freezing.freeze(model[2])
    spfde.freezing.freeze(model[4])
    masks, weights = stored(topology, "2", "4"), model[2].dense_weight()
    steps(3, 12)
    assert equal(masks, stored(topology, "2", "4")) and torch.equal(model[2].dense_weight(), weights)
    spfde.freezing.unfreeze(model)
    assert steps(12, 40) or name in SHRINKING  # which never grow, and were at their target already
    assert {n: layer.nnz for n, layer in topology.layers.items()} == topology.target


CHANGING = (*SCHEDULED, "top-kast")  # counts, or weights that take part


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in CHANGING else LONG) for name in VARIANTS])
def test_every_freeze_prunes_to_the_target_and_every_thaw_lets_the_mask_move(name):
    method, options = VARIANTS[name]
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = method(model, optimizer, total_steps=40, every=1, **options)
    moved = []
    for turn in range(4):
        before = model[2].mask()
        for step in range(3):
            train_step(model, optimizer, 9 * turn + step)
            topology.step()
        moved.append(not torch.equal(model[2].mask(), before))
        topology.settle(model[2])
        mask, state = model[2].mask(), copy.deepcopy(optimizer.state[model[2].values])
        assert model[2].nnz == topology.target["2"] == mask.sum() // math.prod(model[2].grid.block)
        spfde.freezing.freeze(model[2])
        train_step(model, optimizer, 9 * turn + 3)
        topology.step()
        assert torch.equal(model[2].mask(), mask)
        assert all(torch.equal(value, optimizer.state[model[2].values][key]) for key, value in state.items())
        spfde.freezing.unfreeze(model[2])
    assert any(moved[1:]) or name in (*SHRINKING, "gap")  # which never grow, and whose turn comes later


def test_settling_alone_stops_nothing():
    model = net()
    topology = SET(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=9, every=1)
    masks = stored(topology, "2")
    assert topology.settle(model[2]) == topology.settle(model[2]) == ["2"]
    assert equal(masks, stored(topology, "2"))  # it was at its target
    topology.step()
    assert not equal(masks, stored(topology, "2"))


def test_what_is_frozen_already_is_not_settled():
    model = net()
    topology = MEST(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=90, every=1, soft=True)
    topology.step()
    spfde.freezing.freeze(model[2])
    count = model[2].nnz
    assert count > topology.target["2"]
    assert "2" not in topology.settle(model) and model[2].nnz == count


def test_the_soft_bound_comes_back_after_a_freeze():
    model = net()
    topology = MEST(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=32, every=1, drop_fraction=0.5, soft=True)
    layer, target = model[2], topology.target["2"]

    def step(number):
        train_step(model, topology.optimizer, number)
        topology.step()

    step(0)
    assert layer.nnz == target + int(0.5 * target)
    topology.settle(layer)
    spfde.freezing.freeze(layer)
    step(1)
    assert layer.nnz == target
    spfde.freezing.unfreeze(layer)
    step(2)
    assert layer.nnz == target + int(0.5 * target)
    for number in range(3, 32):
        step(number)
        assert number < 17 or layer.nnz <= target + int(0.25 * target)  # half of the share from 9/16 on
    assert layer.nnz == target


def test_gradual_pruning_does_not_fill_a_settled_layer_again():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = GMP(model, optimizer, total_steps=20, every=1)
    topology.step()
    assert model[2].nnz > topology.target["2"]
    topology.settle(model[2])
    topology.step()
    assert model[2].nnz == topology.target["2"]


def test_topkast_explores_again_from_what_it_had_learned():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = TopKAST(model, optimizer, total_steps=20, every=50)
    train_step(model, optimizer, 0)
    exploration = topology.explorations["2"]
    positions, learned = exploration.positions, model[2].values.detach()[exploration.slots].clone()
    topology.settle(model[2])
    assert "2" not in topology.explorations and not model[2].values[model[2].nnz :].any()
    assert torch.equal(topology.reservoir["2"][positions], learned)
    spfde.freezing.freeze(model[2])
    topology.step()
    assert "2" not in topology.explorations
    spfde.freezing.unfreeze(model[2])
    topology.step()
    assert topology.explorations["2"].positions.numel() == positions.numel()
    assert not optimizer.state[model[2].values]["momentum_buffer"][topology.explorations["2"].slots].any()
    train_step(model, optimizer, 1)
    assert model[2].values.grad[topology.explorations["2"].slots].any()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("stop", [6, pytest.param(3, marks=LONG), pytest.param(9, marks=LONG)])
def test_resuming_around_a_freeze_gives_the_same_bits(name, stop):
    """Saved before the freeze, while layer "2" is frozen, or after it was unfrozen."""
    method, options = VARIANTS[name]

    def run(stop=None):
        model = net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        topology = method(model, optimizer, total_steps=14, every=2, seed=5, **options)
        for step in range(14):
            if step == 5:
                topology.settle(model[2])
                spfde.freezing.freeze(model[2])
            if step == 8:
                spfde.freezing.unfreeze(model[2])
            train_step(model, optimizer, step)
            topology.step()
            if step == stop:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), topology.state_dict()))
                model = net(seed=9)
                if 5 <= step < 8:
                    spfde.freezing.freeze(model[2])
                optimizer = OPTIMIZERS["sgd"](model.parameters())
                topology = method(model, optimizer, total_steps=14, every=2, seed=123, **options)
                for part, state in zip((model, optimizer, topology), saved, strict=True):
                    part.load_state_dict(state)
        return model.state_dict()

    whole, parts = run(), run(stop)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_layer_that_was_frozen_at_first_joins_later():
    for method in (SET, TopKAST):
        torch.manual_seed(0)
        model = nn.Sequential(*[spfde.sparsify(nn.Linear(12, 12), 0.5) for _ in range(2)])
        spfde.freezing.freeze(model[0])
        topology = method(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=20, every=1)
        spfde.freezing.unfreeze(model[0])
        topology.optimizer.add_param_group({"params": [p for p in model.parameters() if id(p) not in held(topology)]})
        mask = model[0].mask()
        for _ in range(9):
            topology.optimizer.zero_grad()
            model(torch.randn(4, 12)).square().sum().backward()
            topology.optimizer.step()
            topology.step()
        assert not torch.equal(model[0].mask(), mask)


def held(topology):
    return {id(p) for group in topology.optimizer.param_groups for p in group["params"]}
