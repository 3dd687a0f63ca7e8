"""The products of the kernel "cuda", its kernels emulated, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spfde.kernels import cuda
from spfde.kernels.problem import problem_of
from spfde.nn import SparseConv2d, SparseLinear

ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(autouse=True)
def emulation(monkeypatch, emulated):
    monkeypatch.setattr(cuda, "native", lambda: emulated)


def expect_close(got, wanted, size):
    """Within what rounding may do to sums whose terms' absolute values add up to `size`."""
    assert got.shape == wanted.shape
    allowed = 2e-6 * size + ROUNDING[got.dtype] * wanted.abs() + 1e-7
    assert ((got.double() - wanted).abs() <= allowed).all()


def layer_of(kind, rows, cols, density, dtype, capacity):
    weight = torch.randn(rows, cols).to(dtype)
    mask = torch.rand(rows, cols) < density
    if kind == "linear":
        layer = SparseLinear.from_dense(_with(torch.nn.Linear(cols, rows), weight), mask=mask)
    else:
        dense = _with(torch.nn.Conv2d(cols, rows, 1), weight[..., None, None])
        layer = SparseConv2d.from_dense(dense, mask=mask[..., None, None])
    return layer, torch.where(mask, weight, 0).double(), mask


def _with(module, weight):
    module.weight.data = weight.float()
    return module


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["linear", "planes", "channels_last"]),
    rows=st.sampled_from([1, 5, 16, 131]),
    cols=st.sampled_from([1, 3, 65, 140]),
    batch=st.integers(0, 5),
    size=st.sampled_from([(1, 1), (2, 2), (3, 5), (4, 8)]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_equal_to_float64(kind, rows, cols, batch, size, density, dtype):
    layer, weight, mask = layer_of("linear" if kind == "linear" else "conv2d", rows, cols, density, dtype, 0)
    shape = (batch, cols) if kind == "linear" else (batch, cols, *size)
    memory = torch.channels_last if kind == "channels_last" else torch.contiguous_format
    x = torch.randn(shape).contiguous(memory_format=memory).to(dtype)
    bias, values, plan = torch.randn(rows).to(dtype), layer.values.detach().to(dtype), layer.plan
    window, stored = plan.window, int(mask.sum())
    problem = problem_of(tuple(layer.plan.shape), x.shape, stored, (1, 1), window, "cuda", dtype)
    product, index = cuda.Cuda.products[problem.op], plan.kernel_index

    y = product.forward(x, values, bias, index, problem)
    assert y.is_contiguous(memory_format=memory)
    tokens = lambda t: t.double() if t.dim() == 2 else t.double().movedim(1, -1).reshape(-1, t.shape[1])  # noqa: E731
    expect_close(tokens(y).to(dtype), tokens(x) @ weight.t() + bias.double(), tokens(x).abs() @ weight.abs().t() + 3)

    dy = torch.randn_like(y)
    dx = product.input_grad(dy, values, index, problem, x.shape)
    expect_close(tokens(dx).to(dtype), tokens(dy) @ weight, tokens(dy).abs() @ weight.abs())

    dvalues, dbias = product.weight_grad(dy, x, index, values.shape[1:], problem, True)
    dense = tokens(dy).t() @ tokens(x)
    size_of = tokens(dy).abs().t() @ tokens(x).abs()
    expect_close(dvalues.flatten()[:stored], dense[mask], size_of[mask] * (1 if density <= cuda.SAMPLED else 5))
    assert not dvalues.flatten()[stored:].any()
    expect_close(dbias, tokens(dy).sum(0), tokens(dy).abs().sum(0) * 5)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["80-real", "87-real"], (8, 7), True),
        (["80-real"], (8, 9), True),  # of the same major number, older
        (["89-real"], (8, 6), False),
        (["90-real"], (12, 0), False),
        (["90-real", "90-virtual"], (12, 0), True),
        (["90"], (10, 0), True),
        (["121-virtual"], (12, 0), False),
    ],
)
def test_code_runs_where_its_architecture_says(built, capability, runs):
    assert cuda.built_for(built, capability) is runs


@pytest.mark.parametrize(
    ("device", "dtype", "problem", "reason"),
    [
        ("cpu", torch.float32, {}, "do not run on cpu"),
        ("cuda", torch.float64, {}, "not float64"),
        ("cuda", torch.float32, {"block": (4, 1)}, "not for blocks"),
        ("cuda", torch.float32, {"padding": True}, "pointwise"),
    ],
)
def test_what_it_cannot_do_it_says(device, dtype, problem, reason):
    window = torch_window(problem.get("padding", False))
    shape = (8, 8, 1, 1) if problem.get("padding") else (8, 8)
    given = problem_of(shape, (2, 8, 4, 4)[: len(shape)], 6, problem.get("block", (1, 1)), window, device, dtype)
    assert reason in cuda.Cuda().obstacle(device, dtype, given)


def torch_window(padded):
    from spfde.sparse.kernel_index import Window

    return Window(padding=(1, 1, 1, 1)) if padded else Window()


def test_a_core_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "load", lambda: type("Core", (), {"cuda_archs": staticmethod(list)}))
    problem = problem_of((8, 8), (2, 8), 6, (1, 1), torch_window(False), "cuda", torch.float32)
    assert "built without nvcc" in cuda.Cuda().obstacle("cuda", torch.float32, problem)
