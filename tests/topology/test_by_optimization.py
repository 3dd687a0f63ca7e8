"""Methods that make weights 0 by the training itself: one step of each by hand, and that they meet their target."""

from math import log

import pytest
import torch
from topology.networks import net
from topology.test_rules import layer_of, step, still
from torch import nn

from spfde import densify, sparsify
from spfde.topology import CompressedSensing, ConstrainedL0, DirectionalPruning, Polarization
from spfde.topology.methods.constrainedl0 import EDGE


def test_one_step_of_gates_and_multiplier():
    """Gates 1/2 and 0 in front of 2 and -1, logits 0 and that of p = 1/2, x = 1: y = 1.

    dz/da = 1.2 s (1 - s) / beta = 0.45 at s = (0.5 + 0.1) / 1.2 = 1/2, and dL/dz = 2, so dL/da = 0.9 and 0, which is
    sqrt(2) times its root mean square. p = 11^(2/3) / (1 + 11^(2/3)) = 0.8318 and 0.5: the expected density is 0.6659,
    0.1659 above 1/2, which m becomes.
    """
    layer = layer_of([[2.0, -1]])
    optimizer = still(layer)
    topology = ConstrainedL0(layer, optimizer, total_steps=99, sparsity=0.5, gate_lr=1.0, dual_lr=1.0)
    topology.memory[""]["logit"].copy_(torch.tensor([0.0, EDGE]).view(2, 1, 1))
    layer.transform.trained.copy_(torch.tensor([0.5, 0]).view(2, 1, 1))
    assert layer(torch.ones(1, 2)).item() == 1
    assert not step(layer, optimizer, topology, [1.0, 1])
    assert layer.values.grad.view(-1).tolist() == [0.5, 0]
    assert float(topology.multiplier[""]) == pytest.approx(0.1659, abs=1e-4)
    expected = torch.tensor([-(2**0.5) - 0.1659 * 0.8318 * 0.1682, EDGE - 0.1659 * 0.25])
    assert torch.allclose(topology.memory[""]["logit"].view(-1), expected, atol=1e-4)
    topology.memory[""]["logit"].fill_(-4)
    step(layer, optimizer, topology, [1.0, 1])
    assert float(topology.multiplier[""]) == 0  # the constraint holds: a restart


def test_gates_of_evaluation_and_their_end():
    """z = 1.2 sigmoid(1.5 a) - 0.1: a = 0 gives 1/2, a = -2 nothing, a = 2 more than 1."""
    layer = layer_of([[2.0, -1, 4, 8]])
    topology = ConstrainedL0(layer, still(layer), total_steps=99, sparsity=0.75)
    topology.memory[""]["logit"].copy_(torch.tensor([0.0, -2, 2, -4.6]).view(4, 1, 1))
    topology._set(layer.transform, *topology.gates(""))
    layer.eval()
    assert layer.dense_weight().tolist() == [[1, 0, 4, 0]]
    assert topology.update() is False  # at step 0
    topology.steps_done = 1
    assert topology.update()
    assert layer.positions().tolist() == [0, 1, 2]  # the last is open with probability sigmoid(-4.6 + 1.6) < 0.1
    topology.settle(layer)
    assert layer.dense_weight().tolist() == [[0, 0, 4, 0]]
    assert "transform" not in layer._modules and layer.positions().tolist() == [2]


def test_the_expected_density_meets_its_target_before_any_bound():
    """Only the last 15 of 300 steps are bounded."""
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)), 0.0, distribution="erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology = ConstrainedL0(
        model, optimizer, total_steps=300, every=10, sparsity=0.8, begin=0.95, end=0.99, dual_lr=0.3
    )
    x = torch.randn(64, 16)
    y = x[:, :4] * x[:, 4:8]
    for _ in range(280):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        topology.step()
    for name, layer in topology.layers.items():
        density = topology.probability(topology.memory[name]["logit"][: layer.nnz]).sum() / layer.grid.size
        assert 0.1 < float(density) < 0.3
        assert layer.nnz < 0.6 * layer.grid.size


def test_an_opened_layer_starts_with_draws_from_its_weights():
    layer = sparsify(nn.Linear(20, 30), 0.9)
    before = layer.values.detach().clone()
    topology = ConstrainedL0(layer, still(layer), total_steps=9)
    assert (layer.nnz, topology.target[""]) == (600, 60)
    assert set(layer.values.detach().view(-1).tolist()) == set(before.view(-1).tolist())


def test_a_model_with_gates_evaluates_as_its_dense_form():
    model = net()
    ConstrainedL0(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9)
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    y = model(x)
    assert torch.allclose(densify(model)(x), y, atol=1e-6)


def test_begin_before_end():
    layer = layer_of([[2.0, -1]])
    with pytest.raises(ValueError, match="begin < end"):
        ConstrainedL0(layer, still(layer), total_steps=9, begin=0.8)
    assert pytest.approx(-2 / 3 * log(11)) == EDGE


def sgd(layer):
    return torch.optim.SGD(layer.parameters(), lr=1.0)


def test_one_step_of_compressed_sensing():
    """Steps of -1 on 4, 2 and 0: sums 3, 1 and -1. r = |w| / 2, so shares 1, 1/2 and 0 of the largest.

    Thresholds of contrast 3 are 3 / (1 + 2 share) = 1, 3/2 and 3, and lam = 1/2 takes off half of them; o = -1 is less
    than its 3/2.
    """
    layer = layer_of([[4.0, 2, 5]])
    optimizer = sgd(layer)
    options = {"sparsity": 0.0, "contrast": 3.0, "beta": 0.5}
    topology = CompressedSensing(layer, optimizer, total_steps=99, lam=0.5, **options)
    with torch.no_grad():
        for kept in (layer.values, topology.memory[""]["sum"], topology.memory[""]["before"]):
            kept[2] = 0
    step(layer, optimizer, topology, [1.0, 1, 1])
    assert topology.memory[""]["threshold"].view(-1).tolist() == [1, 1.5, 3]
    assert layer.dense_weight().tolist() == [[2.5, 0.25, 0]]
    step(layer, optimizer, topology, [0.0, 0, -2])  # the sum goes on where the weight was 0: -1 + 2 = 1
    assert topology.memory[""]["sum"].view(-1).tolist() == [3, 1, 1]


def test_the_cosine_of_compressed_sensing():
    """a = (1 - cos(pi / 2)) / 2 = 1/2 at half of the way: o = (o + w) / 2 + step, thresholds halve."""
    layer = layer_of([[4.0]])
    optimizer = sgd(layer)
    options = {"sparsity": 0.0, "contrast": 1.0, "cosine": True, "begin": 0.1, "end": 0.5}
    topology = CompressedSensing(layer, optimizer, total_steps=8, every=9, lam=1.0, **options)
    topology.memory[""]["sum"].fill_(6)
    topology.memory[""]["threshold"].fill_(2)
    topology.steps_done = 1
    step(layer, optimizer, topology, [1.0])
    assert topology.memory[""]["sum"].item() == pytest.approx(6 / 2 + 4 / 2 - 1)
    assert layer.dense_weight().item() == pytest.approx(4 - (2 / 2 + 1))
    with pytest.raises(ValueError, match="expected lam with cosine"):
        CompressedSensing(layer, optimizer, total_steps=9, cosine=True)


def test_one_step_of_directional_pruning():
    """At lr 1 the first step adds 1 to t, the second 2^mu - 1. Sums 3, 4 in a block: root mean square sqrt(12.5)."""
    layer = sparsify(nn.Linear(2, 2, bias=False), 0.0, pattern="block:1x2")
    optimizer = sgd(layer)
    topology = DirectionalPruning(layer, optimizer, total_steps=99, sparsity=0.0, c=1.0, mu=0.75)
    with torch.no_grad():
        for kept in (layer.values, topology.memory[""]["sum"], topology.memory[""]["before"]):
            kept.copy_(torch.tensor([[[4.0, 5]], [[1.5, 1.5]]]))
    step(layer, optimizer, topology, [1.0, 1])
    size = 12.5**0.5
    expected = torch.tensor([[3 * (1 - 1 / size), 4 * (1 - 1 / size)], [0, 0]])
    assert torch.allclose(layer.dense_weight(), expected)
    step(layer, optimizer, topology, [0.0, 0])
    assert torch.allclose(topology.memory[""]["threshold"], torch.tensor(2**0.75))


@pytest.mark.parametrize("method", [CompressedSensing, DirectionalPruning])
def test_the_strength_leaves_what_is_wanted_and_then_nothing_shrinks(method):
    """At `begin` as many are left as the target says, with no bound; after `end` the optimizer alone moves weights."""
    layer = layer_of([[8.0, -7, 6, -5, 4, -3, 2, -1]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    topology = method(layer, optimizer, total_steps=40, every=2, sparsity=0.75, begin=0.5, end=0.8)
    left = []
    for _ in range(40):
        before = layer.values.detach().clone()
        step(layer, optimizer, topology, [0.0] * 8)
        left.append(int(layer.values.count_nonzero()))
    assert left[20] == left[-1] == layer.nnz == 2 and left[3] > 2
    assert layer.positions().tolist() == [0, 1]
    assert not topology.memory and torch.equal(layer.values, before)


def test_one_step_of_polarization():
    """Gates open and shut, p = 3/4 and 1/4, in front of 2 and 4; x = 1: y = 2, and dL/dz = 2 and 4 behind both.

    p (1 - p) = 3/16, so dL/da = 3/8 and 3/4, the root mean square is 3 sqrt(5/2) / 8. mean p = 1/2 is the target; the
    polarization adds (1 - 2 p) 3/16 = -+3/32.
    """
    layer = layer_of([[2.0, 4]])
    optimizer = still(layer)
    topology = Polarization(layer, optimizer, total_steps=99, sparsity=0.5, gate_lr=1.0, polar=1.0)
    start = torch.tensor([log(3), -log(3)]).view(2, 1, 1)
    topology.memory[""]["logit"].copy_(start)
    topology._set(layer.transform, *topology.gates(""))
    assert layer(torch.ones(1, 2)).item() == 2
    step(layer, optimizer, topology, [1.0, 1])
    assert layer.values.grad.view(-1).tolist() == [1, 1]
    size = 3 * 2.5**0.5 / 8
    moved = torch.tensor([3 / 8 / size - 3 / 32, 3 / 4 / size + 3 / 32]).view(2, 1, 1)
    assert torch.allclose(topology.memory[""]["logit"], start - moved, atol=1e-5)
