"""The ways to compute a case: all do the same work, and what does not is not timed."""

import measure
import networks
import peers
import pytest
import torch
import variants
from cases import Case, Layer, conv
from networks import Network, NetworkCase, Sparse
from torch import nn
from variants import PARTS, Absent, check, expected, names, sparse_layer, sparse_variant, variant

LINEAR, CONV = Layer("linear", 6, (20, 16)), conv(2, (8, 12), 5, 3, 2)
GROUPED = Layer("conv", 2, (8, 12), 5, 3, padding=1, groups=4, bias=False)
WITHOUT_COMPILING = [Case(layer, pattern, 0.5) for layer in (LINEAR, CONV) for pattern in ("unstructured", "block:4x1")]


@pytest.mark.parametrize("case", [*WITHOUT_COMPILING, Case(GROUPED, sparsity=0.5)], ids=str)
def test_every_variant_computes_the_same_step(case):
    sparse = sparse_layer(case)
    dense, wanted = expected(case), expected(case, sparse)
    for name in names(case, "cpu", compiled=False):
        try:
            check(variant(case, name, sparse), "step", dense if name.startswith("dense") else wanted)
        except Absent as reason:
            assert name == "sparseprop", reason


@pytest.mark.parametrize("case", [
    Case(LINEAR, "block:4x4", 0.5, "bfloat16"), Case(CONV, "block:4x4", 0.5, "tf32"),
    Case(Layer("linear", 4, (128, 192), bias=False), sparsity=0.5, dtype="tf32", clustered=True),
], ids=str)  # fmt: skip
def test_every_part_is_that_of_the_dense_layer(case):
    sparse = sparse_layer(case)
    wanted = expected(case, sparse)
    made = sparse_variant(case, "masked", sparse)
    assert list(made.parts()) == list(PARTS)
    for part in PARTS:
        check(made, part, wanted, case.dtype)
    assert not made.parts()["frozen prefix"]()[0].requires_grad


def test_a_clustered_mask_fills_some_tiles_in_part():
    case = Case(Layer("linear", 8, (128, 192), bias=False), sparsity=0.5, dtype="tf32", clustered=True)
    tiles = sparse_layer(case).mask().view(3, 64, 2, 64).float().mean((1, 3))
    assert int((tiles > 0).sum()) == 3 and float(tiles.max()) == pytest.approx(0.2, abs=0.03)


def test_what_is_wrong_fails_and_what_cannot_run_is_absent(monkeypatch, capfd):
    def wrong(case, name, sparse, device):
        made = sparse_variant(case, name, sparse, device)
        return variants.Variant(made.module, 2 * made.x, made.dy, made.place)

    monkeypatch.setattr(measure, "variant", lambda case, name, *rest: (
        wrong(case, name, *rest) if name == "masked" else variant(case, name, *rest)
    ))  # fmt: skip
    wants = lambda name: name in ("native", "masked", "sparseprop")  # noqa: E731
    some = measure.measure(Case(CONV, sparsity=0.5), 1, wants=wants, compiled=False)
    assert not any("compiled" in name for name in some.seconds)
    assert {"dense", "dense channels_last", "native"} <= some.seconds.keys() and "wrong step" in some.failed["masked"]
    assert "masked" not in some.seconds and some.auto in ("native", "masked")
    refused = measure.measure(Case(GROUPED, "block:5x1", 0.5), 1, compiled=False)
    assert not refused.seconds and "spfde" in refused.absent["native"]
    made = sparse_variant(Case(CONV, sparsity=0.5), "native", sparse_layer(Case(CONV, sparsity=0.5)))
    nan = variants.Variant(made.module, made.x * float("nan"), made.dy, made.place)
    with pytest.raises(ValueError, match="wrong step"):
        check(nan, "step", expected(Case(CONV, sparsity=0.5)))


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_peers_of_a_gpu_have_a_forward_pass_alone(monkeypatch):
    monkeypatch.setattr(variants.triton, "available", lambda: True)
    case = Case(Layer("linear", 8, (64, 64), bias=False), "block:16x16", 0.5)
    made = variant(case, "torch bsr", sparse_layer(case))
    assert list(made.parts()) == ["forward"]
    check(made, "forward", expected(case, sparse_layer(case)))
    assert int((peers._two_of_four(torch.ones(4, 8)) != 0).sum()) == 16
    assert names(case, "cuda") == ["dense", "triton", "masked", "torch bsr"]
    assert "torch 2:4" in names(Case(LINEAR, "block:64x64", 0.9, "bfloat16"), "cuda")


def test_on_a_gpu_cuda_multiplies_single_weights_and_blocks_without_triton(monkeypatch):
    assert names(Case(LINEAR), "cuda") == ["dense", "cuda", "masked", "torch csr"]
    assert names(Case(LINEAR, dtype="bfloat16"), "cuda") == ["dense", "cuda", "masked"]
    assert names(Case(CONV), "cuda") == ["dense", "dense channels_last", "cuda", "masked"]
    monkeypatch.setattr(variants.triton, "available", lambda: False)
    blocks = Case(LINEAR, "block:64x64", 0.9, "bfloat16")
    assert names(blocks, "cuda") == ["dense", "cuda", "masked", "torch bsr", "torch 2:4"]
    assert networks.variants() == ("cuda", "cuda unfused", "auto", "dense channels_last")


def test_a_network_on_a_gpu_is_timed_as_it_is_trained(monkeypatch):
    small = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    monkeypatch.setattr(Network, "make", lambda network: small)
    case = NetworkCase(Network("vit", batch=2, size=8), Sparse("block:16x16", 0.5))
    given = networks.pair(case, "cpu")
    frozen = []
    monkeypatch.setattr(networks.triton, "available", lambda: True)
    monkeypatch.setattr(networks, "_freeze", lambda model, name: frozen.append(name))
    assert list(networks.calls(given, "auto")) == list(networks.PARTS)
    assert frozen == list(given.front) != []
    some = measure.measure(case, 1, "cpu")
    assert list(some.seconds) == ["auto", "dense channels_last"]  # no Triton on a CPU
    assert list(some.failed) == ["triton", "triton unfused"]
    assert some.speedup("auto", "half frozen step") > 0 and "sparse layers" in some.reason
