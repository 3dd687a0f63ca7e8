"""The GPU benchmark's own way, by the real kernels: every part of it against the dense layer."""

import pytest
import torch
from gpu import layers, networks
from gpu.cases import Case, Network
from torch import nn

import spfde


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
@pytest.mark.parametrize("shape", [("linear", 16, 80, 48, 16), ("conv2d", 2, 32, 48, 16, 0.5, 5, 2),
                                   ("clustered", 16, 128, 192, 64)], ids=lambda shape: shape[0])  # fmt: skip
def test_every_part_is_right(shape, dtype):
    kind, *sizes = shape
    if kind != "conv2d":
        sizes.append(0.5)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        given = layers.problem(Case(kind, dtype, *sizes), "cpu")
        assert list(layers.calls(given, "spfde")) == list(layers.PARTS)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_a_network_runs_in_autocast(monkeypatch):
    monkeypatch.setitem(networks.MODELS, "small", lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    ))  # fmt: skip
    monkeypatch.setattr(networks, "PIXELS", 8)
    given = networks.problem(Network("small", 2, 16, 0.5), "cpu")
    assert [row.converted for row in spfde.summary(given.sparse).rows] == [False, True, True, False]
    assert list(networks.calls(given, "spfde")) == ["step", "half frozen step", "frozen forward"]
