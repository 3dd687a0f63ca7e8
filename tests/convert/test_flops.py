"""FLOPs per layer: stored weights times positions, in execution order."""

import torch
from torch import nn

from spfde import sparsify
from spfde.flops import layer_work


def test_positions_weights_and_order():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.Linear(9, 5))
    sparsify(model, distribution={"1": 0.75})
    work = layer_work(model, torch.randn(3, 2, 6, 6))
    assert [(w.name, w.positions, w.weights, w.first) for w in work.values()] == [
        ("0", 9, 72, True), ("1", 9, 4, False), ("3", 4, 45, False)]  # fmt: skip
    assert [(w.forward, w.backward) for w in work.values()] == [(1296, 1296), (72, 144), (360, 720)]


def test_a_layer_that_runs_twice_counts_twice_and_modes_are_restored():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.a(self.a(x)))

    model = Twice()
    mean = model.norm.running_mean.clone()
    assert layer_work(model, (torch.randn(2, 4),))["a"].positions == 2
    assert model.training
    assert torch.equal(model.norm.running_mean, mean)
