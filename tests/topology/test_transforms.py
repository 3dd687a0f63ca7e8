"""Powerpropagation and learned thresholds: literal values and gradients, what they allow, how they end."""

import copy

import pytest
import torch
from topology.networks import net, train_step
from torch import nn

from spfde import densify, sparsify
from spfde.topology import GMP, Powerprop, RigL, Thresholds, learn_thresholds, powerpropagate
from spfde.topology.reparam.thresholds import SoftThreshold


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_powerprop_by_hand(alpha):
    phi = torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    w = Powerprop(alpha)(phi)
    assert torch.allclose(w, torch.tensor([-(2.0**alpha), 0, 0.5**alpha], dtype=torch.float64))
    w.sum().backward()
    slope = torch.tensor([alpha * 2.0 ** (alpha - 1), 1.0 if alpha == 1 else 0, alpha * 0.5 ** (alpha - 1)])
    assert torch.allclose(phi.grad, slope.double())
    assert torch.allclose(Powerprop(alpha).inverse(w.detach()), phi.detach())


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x3", "channel"])
def test_powerprop_keeps_the_weights_and_trains(pattern):
    model = net(pattern)
    weights = {i: model[i].dense_weight() for i in (0, 2, 4)}
    assert powerpropagate(model, 3.0) is model
    for i, weight in weights.items():
        assert torch.allclose(model[i].dense_weight(), weight, atol=1e-6)
    x = torch.randn(2, 3, 8, 8)
    y = model(x)
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.allclose(densify(copy.deepcopy(model))(x), y, atol=1e-5)


def test_powerprop_goes_with_gradual_pruning_only():
    model = powerpropagate(sparsify(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), 0.0, distribution="erk"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected weights that RigL can grow at 0, got Powerprop.*try GMP"):
        RigL(model, optimizer, total_steps=9)
    topology = GMP(model, optimizer, total_steps=4, every=1, sparsity=0.5)
    for _ in range(4):
        topology.step()
    assert [layer.nnz for layer in model] == [18, 18]
    with pytest.raises(ValueError, match="expected '0' without a transform"):
        powerpropagate(model)
    with pytest.raises(ValueError, match="expected alpha >= 1, got 0.5"):
        powerpropagate(model, 0.5)


@pytest.mark.parametrize("below", [0.0, 0.75])
def test_a_soft_threshold_by_hand(below):
    """At t = sigmoid(0) = 0.5 2 and -1 stay, at 1.5 and -0.5; 0.25 does not, and gets `below` of its gradient."""
    shrink = SoftThreshold(0.0, below)
    values = torch.tensor([2.0, -1, 0.25], requires_grad=True)
    w = shrink(values)
    assert w.tolist() == [1.5, -0.5, 0]
    (w * torch.tensor([1.0, 2, 4])).sum().backward()
    assert values.grad.tolist() == [1, 2, 4 * below]
    assert shrink.raw.grad.item() == -(1 - 2) * 0.25  # dw/dt = -sign(v) above t, dt/draw = t (1 - t)


def test_thresholds_anneal_and_then_stop_storing():
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), 0.0, distribution="erk")
    learn_thresholds(model, raw=-1.5, annealing=0.8)
    topology = Thresholds(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=8, every=2, end=0.5)
    weights, below = [layer.dense_weight() for layer in model], []
    for _ in range(8):
        below.append(round(model[0].transform.below, 6))
        stored = [layer.nnz for layer in model]
        topology.step()
        if len(below) < 4:
            assert stored == [36, 36]
    assert below[0] == 0.8 and below[2] == 0.4 and below[4:] == [0.0] * 4
    for layer, weight in zip(model, weights, strict=True):
        assert 0 < layer.nnz < 36
        assert torch.equal(layer.dense_weight(), weight)
        assert torch.equal(layer.mask(), weight != 0)


def test_thresholds_resume_to_the_bit():
    def run(stop=None):
        model = learn_thresholds(net(), raw=-2.0, annealing=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        topology = Thresholds(model, optimizer, total_steps=10, every=2, end=0.5)
        for step in range(10):
            train_step(model, optimizer, step)
            topology.step()
            if step == stop:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), topology.state_dict()))
                model = learn_thresholds(net(), raw=1.0, annealing=0.9)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
                topology = Thresholds(model, optimizer, total_steps=10, every=2, end=0.5)
                for part, state in zip((model, optimizer, topology), saved, strict=True):
                    part.load_state_dict(state)
        return model.state_dict()

    whole = run()
    for other in (run(3), run(7)):
        assert all(torch.equal(whole[key], other[key]) for key in whole)


def test_thresholds_say_what_is_missing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected a learned threshold in '0', got none, try spfde.topology.learn_th"):
        Thresholds(model, optimizer, total_steps=9)
    with pytest.raises(ValueError, match=r"expected end in \[0, 1\]"):
        Thresholds(model, optimizer, total_steps=9, end=2.0)
    with pytest.raises(ValueError, match=r"expected annealing in \[0, 1\], got -1"):
        learn_thresholds(model, annealing=-1)
