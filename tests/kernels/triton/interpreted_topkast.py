"""Top-KAST's extra gradient by Triton's kernels in the interpreter. Run by test_interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spfde
from spfde.topology import TopKAST

LAYERS = {
    "linear": (lambda: nn.Linear(48, 64), (8, 48)),
    "conv": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (2, 16, 7, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_extra_gradient_of_a_layer_in_blocks(name, launched):
    """The weight gradient's kernel starts twice: for the stored blocks and for the explored ones."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = spfde.sparsify(make(), 0.5, pattern="block:16x16")
    layer.kernel = "triton"
    x = torch.randn(shape)
    layer(x).square().mean().backward()
    alone = len(launched)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    topology = TopKAST(layer, optimizer, total_steps=10, every=2, penalty=0.0)
    launched.clear()
    optimizer.zero_grad()
    layer(x).square().mean().backward()
    assert len(launched) > alone and len(set(launched)) < len(launched)
    exploration, dense = topology.explorations[""], layer.to_dense()
    dense(x).square().mean().backward()
    wanted = layer.grid.cut(dense.weight.grad)[exploration.positions]
    got = layer.values.grad[exploration.slots]
    assert got.numel() and (got - wanted).norm() <= 1e-5 * wanted.norm()
    optimizer.step()
    topology.step()
    assert topology.step()  # the sets are taken anew, and the next backward follows them
    layer(x).square().mean().backward()
