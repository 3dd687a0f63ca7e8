"""Growth by gradient sees all of a gradient that second derivatives are part of."""

import copy

import pytest
import torch
from torch import nn

from spfde import densify, sparsify
from spfde.topology.probes import GradientProbe


def penalty(model, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    return grad.square().sum()


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2"])
@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)),
    lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 2, stride=2)),
], ids=["linear", "conv2d"])  # fmt: skip
def test_a_probe_sees_the_dense_gradient_of_a_penalty(make, pattern):
    torch.manual_seed(0)
    model = sparsify(make(), 0.5, pattern=pattern, distribution="erk")
    dense = densify(copy.deepcopy(model)).double()
    x = torch.randn(3, 8) if isinstance(dense[0], nn.Linear) else torch.randn(3, 4, 6, 6)
    probes = {i: GradientProbe(model[i]) for i in (0, 2)}
    for i, probe in probes.items():
        model[i]._grad_probe = probe
    value = penalty(model, x)
    for probe in probes.values():
        probe.__init__(probe.layer)  # the first pass was for x alone
    value.backward()
    penalty(dense, x.double()).backward()
    for i, probe in probes.items():
        probe.multiply()
        want = dense[i].weight.grad
        torch.testing.assert_close(probe._sum.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert abs(float(probe.scale()) - 1) < 1e-4


def test_what_torch_differentiates_is_refused_under_a_probe():
    layer = sparsify(nn.Linear(8, 8), 0.5).double()
    layer._grad_probe = GradientProbe(layer)
    with pytest.raises(RuntimeError, match="expected first derivatives while a topology watches.*try"):
        penalty(layer, torch.randn(3, 8).double())
