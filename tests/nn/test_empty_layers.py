"""Layers of which nothing is stored (sparsity 1): one slot, dead."""

import pytest
import torch
from torch import nn

from spfde import sparsify
from spfde.topology import RigL


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "block:1x3", "fan-in", "channel"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.Conv2d(8, 8, 3)], ids=["linear", "conv2d"])
def test_an_empty_layer(make, pattern):
    layer = sparsify(make(), 1.0, pattern=pattern)
    assert layer.nnz == layer.stored == 0
    assert layer.sparsity == 1.0
    assert not layer.mask().any()
    assert layer.values.shape[0] == 1
    x = torch.randn(2, 8, 5, 5) if layer.window.kernel != (1, 1) else torch.randn(2, 8)
    for kernel in ("native", "dense", "reference", "auto"):
        layer.kernel = kernel
        layer.zero_grad()
        y = layer(x.requires_grad_())
        torch.testing.assert_close(y, _spread(layer.bias, y))
        y.sum().backward()
        assert not layer.values.grad.any()
        assert not x.grad.any()
        assert layer.bias.grad.any()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0, norm_type=float("inf"))
    other = sparsify(make(), 1.0, pattern=pattern)
    other.load_state_dict(layer.state_dict())
    layer.load_state_dict({"weight": layer.dense_weight(), "bias": layer.bias.detach()})
    assert other.nnz == layer.nnz == 0


def _spread(bias, y):
    return (bias if y.dim() == 2 else bias.view(-1, 1, 1)).expand_as(y)


@pytest.mark.parametrize("clip", [2.0, float("inf")])
def test_a_model_with_an_empty_layer_trains(clip):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    sparsify(model, distribution={"0": 1.0, "2": 0.5})
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    topology = RigL(model, optimizer, total_steps=8, every=2)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=clip)
        optimizer.step()
        topology.step()
    assert not model[0].values.any()
    assert model[0].nnz == 0
