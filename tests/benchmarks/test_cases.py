"""Every way of a layer computes that layer, and what does not is not timed."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from cases import (
    LAYERS,
    PATTERNS,
    SPARSITIES,
    Absent,
    Case,
    Layer,
    check,
    conv,
    dense_case,
    dense_names,
    expected,
    sparse_case,
    sparse_names,
    sparsified,
    target,
)
from torch import nn

SMALL = [
    Layer("linear", 48, (24, 10)),
    Layer("linear", 32, (32, 16), bias=False),
    conv(5, (3, 8), 7, 3),
    conv(16, (6, 4), 5, 1),
    Layer("conv", 3, (4, 6), 9, 3, stride=2, padding=1, bias=False),
    Layer("conv", 2, (6, 4), 6, 3, padding=1, groups=2),
]


def suited(layer: Layer, name: str) -> Layer:
    """SparseProp's convolutions over the batch are wrong where it is no multiple of 8."""
    return replace(layer, batch=8) if name == "sparseprop" else layer


WAYS = [(suited(layer, name), name) for layer in SMALL for name in sparse_names(layer, "unstructured")]


def build(layer: Layer, name: str, sparsity: float = 0.7) -> Case:
    try:
        return sparse_case(layer, name, sparsified(layer, sparsity))
    except Absent as absent:
        pytest.skip(str(absent))


def in_float64(layer: Layer, sparsity: float = 0.7) -> list[torch.Tensor]:
    sparse = sparsified(layer, sparsity)
    dense = layer.dense().double()
    dense.weight = nn.Parameter(sparse.dense_weight().double())
    case = dense_case(layer, "dense")
    y, dx, dweight, *dbias = replace(case, module=dense, x=case.x.double(), dy=case.dy.double()).step()
    return [y.detach(), dx, dweight * sparse.mask(), *dbias]


@pytest.mark.parametrize("layer, name", WAYS, ids=lambda value: str(value))
def test_sparse_ways_compute_the_same_step(layer, name):
    case = build(layer, name)
    y, dx, dvalues, *dbias = case.step()
    wanted = in_float64(layer)
    results = [y.detach(), dx, case.dense(dvalues), *dbias]
    assert len(results) == len(wanted) == 3 + layer.bias
    for got, want in zip(results, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    check(case, expected(layer, sparsified(layer, 0.7)))


@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_dense_ways_compute_the_same_step(layer):
    reference = dense_case(layer, "dense").step()
    for name in dense_names(layer, compiled=False):
        for got, want in zip(dense_case(layer, name).step(), reference, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_memory_formats_are_what_the_names_say():
    layer = conv(2, (3, 4), 5, 3)
    plain, last = dense_case(layer, "dense"), dense_case(layer, "dense channels_last")
    for tensor in (plain.x, plain.dy, plain.module.weight):
        assert tensor.is_contiguous()
    for tensor in (last.x, last.dy, last.module.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name, kernel", [("native", "native"), ("masked", "dense")])
def test_our_ways_force_their_kernel(name, kernel):
    case = build(SMALL[0], name)
    case.step()
    assert case.module.kernel == kernel


@pytest.mark.parametrize("result", ["output", "input gradient", "weight gradient", "bias gradient"])
def test_a_wrong_result_is_not_timed(result):
    layer = SMALL[0]
    case = build(layer, "native")
    wanted = list(expected(layer, sparsified(layer, 0.7)))
    index = ["output", "input gradient", "weight gradient", "bias gradient"].index(result)
    wanted[index] = wanted[index] * 1.01
    with pytest.raises(Absent, match=f"wrong {result}: relative error"):
        check(case, tuple(wanted))


def test_a_result_that_is_not_a_number_is_not_timed():
    case = build(SMALL[0], "native")
    wanted = expected(SMALL[0], sparsified(SMALL[0], 0.7))
    with torch.no_grad():
        case.module.bias.fill_(float("nan"))
    with pytest.raises(Absent, match="wrong output"):
        check(case, wanted)


def test_a_kernel_that_refuses_is_absent_with_its_reason():
    class Refusing(nn.Module):
        def forward(self, x):
            raise ValueError("expected another input, got this one")

    case = replace(build(SMALL[0], "native"), module=Refusing())
    with pytest.raises(Absent, match="expected another input"):
        check(case, expected(SMALL[0], sparsified(SMALL[0], 0.7)))


def test_a_pattern_that_spfde_refuses_is_absent_with_its_reason():
    with pytest.raises(Absent, match="spfde: expected .*no-such-pattern"):
        sparsified(SMALL[0], 0.5, "no-such-pattern")


@pytest.mark.parametrize("layer", [SMALL[0], SMALL[2]], ids=str)
def test_a_peer_that_is_missing_is_not_installed(monkeypatch, layer):
    monkeypatch.setitem(sys.modules, "sparseprop.modules", None)
    with pytest.raises(Absent, match="^not installed$"):
        sparse_case(layer, "sparseprop", sparsified(layer, 0.5))


def test_sparseprop_has_no_groups():
    pytest.importorskip("sparseprop")
    with pytest.raises(Absent, match="no groups"):
        sparse_case(SMALL[-1], "sparseprop", sparsified(SMALL[-1], 0.5))


def test_sparse_ways_do_not_share_the_layer_they_come_from():
    sparse = sparsified(SMALL[0], 0.5)
    before = deepcopy(sparse.state_dict())
    case = sparse_case(SMALL[0], "masked", sparse)
    check(case, expected(SMALL[0], sparse))
    assert sparse.kernel == "auto"
    for key, value in sparse.state_dict().items():
        assert torch.equal(value, before[key])


def test_layers_have_names_of_their_own():
    assert len({str(layer) for layer in [*LAYERS, *SMALL]}) == len(LAYERS) + len(SMALL)
    assert str(LAYERS[0]) == "linear 1024x1024 b128"
    assert str(SMALL[4]) == "conv 3x3/2 4x6 9px b3"
    assert str(SMALL[5]) == "conv 3x3 6x4 g2 6px b2"


@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_lanes_are_outputs_per_feature(layer):
    with torch.no_grad():
        y = layer.dense()(layer.input())
    assert layer.lanes == y.numel() // layer.channels[1]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_targets_ascend_and_stop_at_what_was_agreed(pattern, kind):
    aims = [target(pattern, kind, sparsity) for sparsity in SPARSITIES]
    assert aims == sorted(aims) and aims[0] >= 1
    assert target(pattern, kind, 0.5) is None
    assert target("2:4", kind, 0.9) is None


@pytest.mark.parametrize("faster", [False, True])
def test_sparseprop_takes_the_faster_of_its_two_ways(monkeypatch, faster):
    pytest.importorskip("sparseprop")
    monkeypatch.setattr("peers._seconds", lambda case: case.module.vectorizing_over_on != faster)
    layer = replace(SMALL[2], batch=8)
    case = sparse_case(layer, "sparseprop", sparsified(layer, 0.5))
    assert case.module.vectorizing_over_on is faster
    assert case.x.is_contiguous() is faster  # the way over the batch has the batch innermost
    check(case, expected(layer, sparsified(layer, 0.5)))
