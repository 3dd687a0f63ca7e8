"""The GPU benchmark's own variant, by the real kernels: every part of it against the dense layer."""

import networks
import pytest
from cases import Case, Layer, conv
from networks import Network, NetworkCase, Sparse
from torch import nn
from variants import PARTS, check, expected, sparse_layer, sparse_variant

import spfde
from spfde.tuning.layer import precision

CASES = {
    "linear": (Layer("linear", 16, (80, 48), bias=False), "block:16x16", 0.5),
    "conv": (conv(2, (32, 48), 5, 3, 2, bias=False), "block:16x16", 0.5),
    "clustered": (Layer("linear", 16, (128, 192), bias=False), "unstructured", 0.5),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
@pytest.mark.parametrize("kind", CASES)
def test_every_part_is_right(kind, dtype):
    case = Case(*CASES[kind], dtype, clustered=kind == "clustered")
    with precision(dtype):
        sparse = sparse_layer(case)
        made, wanted = sparse_variant(case, "triton", sparse), expected(case, sparse)
        for part in PARTS:
            check(made, part, wanted, dtype)


def test_a_network_runs_in_autocast(monkeypatch):
    small = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    monkeypatch.setattr(Network, "make", lambda network: small)
    given = networks.pair(NetworkCase(Network("vit", batch=2, size=8), Sparse("block:16x16", 0.5)), "cpu")
    assert [row.converted for row in spfde.summary(given.sparse).rows] == [False, True, True, False]
    assert list(networks.calls(given, "triton")) == list(networks.PARTS)
