"""On a GPU: an update waits for it once, and a captured CUDA graph goes on with the new topology."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import spfde
from spfde.topology import METHODS, Topology

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FIXED = {
    "set": {},
    "rigl": {},
    "mest": {"lam": 0.1},
    "dst-ee": {"c": 0.1},
    "itop": {"growth": "gradient"},
    "top-kast": {},
}
LAYERS = {
    "linear": (lambda: nn.Linear(256, 384), (64, 256)),
    "conv": (lambda: nn.Conv2d(64, 128, 3, padding=1), (4, 64, 14, 14)),
}


def network(name: str, pattern: str, kernel: str = "auto") -> tuple[nn.Module, torch.Tensor]:
    """One layer half of whose blocks are stored, and an input, on the GPU."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = spfde.sparsify(make(), 0.5, pattern=pattern).cuda()
    layer.kernel = kernel
    return nn.Sequential(layer), torch.randn(shape).cuda()


def step(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One training step; gradients stay where they are."""
    optimizer.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    optimizer.step()


def topology_of(method: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Topology:
    """A method with an update after every step."""
    return METHODS[method](model, optimizer, total_steps=100, every=1, **FIXED[method])


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16", "channel"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", FIXED)
def test_an_update_waits_for_one_answer(method, name, pattern):
    model, x = network(name, pattern)
    optimizer = torch.optim.Adam(model.parameters())
    topology = topology_of(method, model, optimizer)
    step(model, x, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            shifts = topology._rearrange()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert topology._count_moved(shifts) >= 0
    torch.testing.assert_close(model(x), model[0].to_dense()(x))


@pytest.mark.parametrize(
    ("name", "pattern", "kernel"),
    [
        ("linear", "block:64x64", "triton"),
        ("linear", "block:16x16", "triton"),
        ("linear", "unstructured", "triton"),
        ("linear", "unstructured", "dense"),
        ("linear", "channel", "auto"),
        ("conv", "block:16x16", "triton"),
        ("conv", "block:16x16", "dense"),
        ("conv", "unstructured", "dense"),
    ],
)
def test_a_captured_step_follows_an_update(name, pattern, kernel):
    model, x = network(name, pattern, kernel)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = topology_of("set", model, optimizer)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model, x, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, x, optimizer)
    for _ in range(3):
        assert topology.update()
        eager = copy.deepcopy(model)
        step(eager, x, torch.optim.SGD(eager.parameters(), lr=0.1))
        graph.replay()
        for got, want in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(got, want)
