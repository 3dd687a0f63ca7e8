"""The products of the kernel "cuda", its kernels emulated, against float64."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spfde
from spfde.kernels import cuda
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.problem import problem_of
from spfde.nn import SparseConv2d, SparseLinear
from spfde.sparse.kernel_index import ONE_TAP

ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(autouse=True)
def emulation(monkeypatch, emulated):
    monkeypatch.setattr(cuda, "native", lambda: emulated)
    monkeypatch.setattr(cuda, "SAMPLED", 1.0)  # weight gradients by the kernels, at every density


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
    tokens = lambda t: t.double() if t.dim() == 2 else t.double().movedim(1, -1).reshape(-1, t.shape[1])  # noqa: E731
    expect_close(tokens(y).to(dtype), tokens(x) @ weight.t() + bias.double(), tokens(x).abs() @ weight.abs().t() + 3)

    dy = torch.randn_like(y)
    dx = product.input_grad(dy, values, index, problem, x.shape)
    expect_close(tokens(dx).to(dtype), tokens(dy) @ weight, tokens(dy).abs() @ weight.abs())

    dvalues, dbias = product.weight_grad(dy, x, index, values.shape[1:], problem, True)
    dense = tokens(dy).t() @ tokens(x)
    size_of = tokens(dy).abs().t() @ tokens(x).abs()
    expect_close(dvalues.flatten()[:stored], dense[mask], size_of[mask])
    assert not dvalues.flatten()[stored:].any()
    expect_close(dbias, tokens(dy).sum(0), tokens(dy).abs().sum(0))


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    channels=st.sampled_from([(1, 1, 1), (3, 5, 1), (8, 12, 4), (9, 130, 1)]),
    kernel=st.sampled_from([(3, 3), (3, 2), (1, 4)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    padding=st.integers(0, 2),
    dilation=st.sampled_from([(1, 1), (2, 1)]),
    size=st.sampled_from([(5, 5), (8, 7), (6, 11)]),
    density=st.sampled_from([0.0, 0.04, 0.5]),
    last=st.booleans(),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_convolutions_equal_to_float64(channels, kernel, stride, padding, dilation, size, density, last, dtype):
    inputs, outputs, groups = channels
    dense = torch.nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    mask = torch.rand_like(dense.weight) < density
    layer = SparseConv2d.from_dense(dense, mask=mask)
    memory = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, inputs, *size).contiguous(memory_format=memory).to(dtype)
    bias, values = torch.randn(outputs).to(dtype), layer.values.detach().to(dtype)
    plan, stored, shape = layer.plan, int(mask.sum()), tuple(dense.weight.shape)
    problem = problem_of(shape, x.shape, stored, (1, 1), plan.window, "cuda", dtype)
    product, index = cuda.Cuda.products["conv2d"], plan.kernel_index

    weight = torch.where(mask, dense.weight.detach().to(dtype), 0).double()
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    options = (stride, padding, dilation, groups)
    wanted = F.conv2d(*exact, *options)
    scale = F.conv2d(*(t.detach().abs() for t in exact), *options)
    y = product.forward(x, values, bias, index, problem)
    assert y.is_contiguous(memory_format=memory)
    expect_close(y, wanted.detach(), scale)

    dy = torch.randn_like(y)
    grads = torch.autograd.grad(wanted, exact, dy.double())
    sizes = [t.detach().abs().requires_grad_() for t in exact]
    scales = torch.autograd.grad(F.conv2d(*sizes, *options), sizes, dy.double().abs())
    expect_close(product.input_grad(dy, values, index, problem, x.shape), grads[0], scales[0])
    dvalues, dbias = product.weight_grad(dy, x, index, values.shape[1:], problem, True)
    expect_close(dvalues.flatten()[:stored], grads[1][mask], scales[1][mask])
    expect_close(dbias, grads[2], scales[2])


@pytest.mark.parametrize("kernel", [0, 1, 3])  # 0: a linear layer
def test_at_high_density_the_weight_gradient_is_dense(kernel, monkeypatch):
    dense = torch.nn.Conv2d(6, 9, kernel, padding=kernel // 2) if kernel else torch.nn.Linear(6, 9)
    mask = torch.rand_like(dense.weight) < 0.5
    layer = (SparseConv2d if kernel else SparseLinear).from_dense(dense, mask=mask)
    x, dy = (torch.randn(2, n, 5, 5) if kernel else torch.randn(4, n) for n in (6, 9))
    problem = problem_of(
        tuple(dense.weight.shape), x.shape, int(mask.sum()), (1, 1), layer.plan.window, "cuda", x.dtype
    )
    args = (dy, x, layer.plan.kernel_index, layer.values.shape[1:], problem, True)
    product = cuda.Cuda.products[problem.op]
    sampled = product.weight_grad(*args)
    monkeypatch.setattr(cuda, "SAMPLED", 0.0)
    torch.testing.assert_close(product.weight_grad(*args), sampled, rtol=1e-4, atol=1e-4)


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
        ("cuda", torch.float32, {"block": (4, 1)}, "only blocks with sides of 16, 32, 64 or 128"),
    ],
)
def test_what_it_cannot_do_it_says(device, dtype, problem, reason):
    given = problem_of((8, 8), (2, 8), 6, problem.get("block", (1, 1)), ONE_TAP, device, dtype)
    assert reason in cuda.Cuda().obstacle(device, dtype, given)


def test_a_core_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "load", lambda: type("Core", (), {"cuda_archs": staticmethod(list)}))
    problem = problem_of((8, 8), (2, 8), 6, (1, 1), ONE_TAP, "cuda", torch.float32)
    assert "built without nvcc" in cuda.Cuda().obstacle("cuda", torch.float32, problem)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    kernel=st.sampled_from([None, (1, 1), (3, 2)]),  # None: a linear layer
    channels=st.sampled_from([(5, 7, 1), (8, 12, 4), (9, 130, 1)]),
    size=st.sampled_from([(4, 8), (5, 7), (1, 1)]),
    last=st.booleans(),
    scaled=st.booleans(),
    shifted=st.sampled_from([None, torch.float32, torch.float16]),
    added=st.booleans(),
    act=st.sampled_from(cuda.RECTIFIERS),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_epilogues_equal_to_float64(kernel, channels, size, last, scaled, shifted, added, act, dtype):
    inputs, outputs, groups = channels
    if kernel is None:
        dense, shape = torch.nn.Linear(inputs, outputs), (11, inputs)
    else:
        dense = torch.nn.Conv2d(inputs, outputs, kernel, padding=1 if kernel[0] > 1 else 0, groups=groups)
        shape = (2, inputs, *size)
    mask = torch.rand_like(dense.weight) < 0.4
    layer = (SparseLinear if kernel is None else SparseConv2d).from_dense(dense, mask=mask)
    x, plan = torch.randn(shape).to(dtype), layer.plan
    if last and kernel is not None:
        x = x.contiguous(memory_format=torch.channels_last)
    problem = problem_of(tuple(plan.shape), x.shape, int(mask.sum()), (1, 1), plan.window, "cuda", dtype)
    weight = torch.where(mask, dense.weight.detach().to(dtype), 0).double()
    product = (lambda x, w: F.linear(x, w)) if kernel is None else (lambda x, w: dense._conv_forward(x, w, None))
    z, size_of = product(x.double(), weight), product(x.double().abs(), weight.abs())
    rows = (outputs,) if kernel is None else (outputs, 1, 1)
    scale, shift = torch.rand(outputs) + 0.5, torch.randn(outputs).to(shifted or torch.float32)
    residual = torch.randn(z.shape).to(dtype)  # in NCHW, whatever x is in
    end = Epilogue(shift if shifted else None, scale if scaled else None, residual if added else None, act)
    op = cuda.Cuda.products[problem.op]
    assert op.fuses(end, problem, dtype, graph=False)
    y = op.forward(x, layer.values.detach().to(dtype), None, plan.kernel_index, problem, None, end)
    wanted, size_of = (t * scale.double().view(rows) if scaled else t for t in (z, size_of))
    wanted = wanted + (shift.double().view(rows) if shifted else 0) + (residual.double() if added else 0)
    bounded = {"none": wanted, "relu": wanted.relu(), "relu6": F.relu6(wanted)}[act]
    expect_close(y, bounded, size_of + 5)
    last = last and not x.is_contiguous()  # of a single pixel both are one
    assert kernel is None or y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_which_epilogues_they_take():
    op, x, half = cuda.Cuda.products["conv2d"], torch.ones(2, 3, 4, 4), torch.float16
    problem = problem_of((3, 3), (2, 3, 4, 4), 4, (1, 1), ONE_TAP, "cuda", torch.float32)
    fuses = lambda dtype=torch.float32, graph=False, **parts: op.fuses(Epilogue(**parts), problem, dtype, graph)  # noqa: E731
    assert fuses(residual=x, act="relu", graph=True)  # y shows where it bends
    assert fuses(residual=x, act="relu6")
    assert not fuses(act="relu6", graph=True)
    assert not fuses(act="gelu")
    assert not fuses(residual=x, act="relu", residual_after_act=True)
    assert not fuses(half, residual=x)  # a float32 sum
    assert fuses(half, residual=x.half())
    blocks = problem._replace(block=(16, 16))
    assert not cuda.Cuda.products["linear"].fuses(Epilogue(act="relu"), blocks, torch.float32, graph=False)


@pytest.fixture
def ends(monkeypatch):
    """The activations of the epilogues that convolutions of the kernel "cuda" were called with; None: of none."""
    monkeypatch.setattr(cuda.Cuda, "obstacle", lambda *_: None)
    monkeypatch.setattr("spfde.fusing.epilogue._kernels_end", lambda x: True)
    forward, seen = cuda._Conv2d.forward, []

    def spied(self, x, values, bias, index, problem, weight=None, epilogue=None):
        seen.append(epilogue and epilogue.act)
        return forward(self, x, values, bias, index, problem, weight, epilogue)

    monkeypatch.setattr(cuda._Conv2d, "forward", spied)
    return seen


def networks(*behind):
    """A sparse convolution and what is behind it, and the same fused."""
    net = spfde.sparsify(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), *behind), distribution={"0": 0.5})
    net[0].kernel = "cuda"
    return net, spfde.fuse(deepcopy(net))


def test_a_frozen_norm_is_the_end_of_the_product(ends):
    net, fused = networks(torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    for each in (net, fused):
        each[1].running_mean.fill_(0.25)
        each[1].weight.data.fill_(1.5)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), net.eval()(x))
    assert ends == ["relu", None]
    ends.clear()
    torch.testing.assert_close(fused.train()(x), net.train()(x))  # by the batch's statistics
    assert ends == [None, None]


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_an_activation_is_trained_in_the_product_where_y_shows_it(ends, act):
    net, fused = networks({"relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6}[act]())
    x = torch.randn(2, 3, 6, 6)
    results = []
    for each in (fused, net):
        given = x.clone().requires_grad_()
        y = each(given)
        results.append([y, *torch.autograd.grad(y.square().sum(), (given, *each.parameters()))])
    torch.testing.assert_close(*results)
    assert ends == ["relu" if act == "relu" else None, None]
