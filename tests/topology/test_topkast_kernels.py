"""Top-KAST's extra gradient is right by every kernel, and by the one that the layer was told to use."""

import pytest
import torch
from torch import nn

import spfde
from spfde._native import native
from spfde.topology import TopKAST

LAYERS = {
    "linear": (lambda: nn.Linear(24, 32), (6, 24), "sddmm"),
    "conv": (lambda: nn.Conv2d(8, 16, 3, padding=1), (2, 8, 6, 6), "conv2d_weight_grad"),
}


def extra_gradient(name: str, pattern: str, kernel: str, dtype: torch.dtype = torch.float32):
    """The gradient of the explored weights, and what float64 dense torch gives for them."""
    torch.manual_seed(0)
    make, shape, _ = LAYERS[name]
    layer = spfde.sparsify(make().to(dtype), 0.5, pattern=pattern)
    layer.kernel = kernel
    topology = TopKAST(layer, torch.optim.SGD(layer.parameters(), 0.1), total_steps=10, every=2, penalty=0.0)
    exploration, x = topology.explorations[""], torch.randn(shape, dtype=dtype)
    layer(x).square().mean().backward()
    dense = layer.to_dense().double()
    dense(x.double()).square().mean().backward()
    wanted = layer.grid.cut(dense.weight.grad)[exploration.positions]
    return layer.values.grad[exploration.slots], wanted


@pytest.mark.parametrize("kernel", ["auto", "native", "dense", "reference"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "fan-in", "channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_extra_gradient(name, pattern, kernel):
    got, wanted = extra_gradient(name, pattern, kernel)
    assert got.numel() and (got - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_in_float64(name):
    got, wanted = extra_gradient(name, "unstructured", "auto", torch.float64)
    assert (got - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize(("kernel", "calls"), [("native", 2), ("dense", 0), ("reference", 0)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_forced_kernel_is_obeyed(name, kernel, calls, monkeypatch):
    """The native weight gradient runs for the stored weights and once more for the explored ones, or not at all."""
    called, op = [], LAYERS[name][2]
    run = getattr(native(), op)
    monkeypatch.setattr(native(), op, lambda *args: called.append(op) or run(*args))
    extra_gradient(name, "unstructured", kernel)
    assert len(called) == calls
