"""The kernel "cuda" for weights in blocks, its kernels emulated, against float64; where it is chosen, and why."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from spfde.kernels import cuda, cuda_blocks
from spfde.kernels.dispatch import rule
from spfde.kernels.gpu import GPUS
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.problem import problem_of
from spfde.kernels.triton import kernel as triton_kernel
from spfde.kernels.triton.index import tile_index
from spfde.nn import SparseConv2d, SparseLinear
from spfde.sparse.kernel_index import ONE_TAP, Window
from spfde.sparse.pattern import Pattern

ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture
def emulation(monkeypatch, emulated):
    monkeypatch.setattr(cuda_blocks, "native", lambda: emulated)


@pytest.fixture
def exact_float32(monkeypatch):
    """torch lets convolutions round float32 to TF32 by default."""
    monkeypatch.setattr(cuda_blocks, "uses_tf32", lambda op: False)


@pytest.fixture
def orin(monkeypatch):
    """A board with the kernels built and no Triton."""
    core = type("Core", (), {"cuda_archs": staticmethod(lambda: ["80-real", "121-virtual"])})
    for module in (cuda, triton_kernel):
        monkeypatch.setattr(module, "gpu_here", lambda: GPUS["Orin"])
    monkeypatch.setattr(cuda, "load", lambda: core)
    monkeypatch.setattr(triton_kernel, "why_not", lambda device: "triton is not installed")
    rule.forget()
    yield monkeypatch
    monkeypatch.undo()
    rule.forget()


def expect_close(got, wanted, size):
    """Within what rounding may do to sums whose terms' absolute values add up to `size`."""
    assert got.shape == wanted.shape
    allowed = 2e-6 * size + ROUNDING[got.dtype] * wanted.abs() + 1e-7
    assert ((got.double() - wanted).abs() <= allowed).all()


def linear(rows, cols, block, density):
    drawn = torch.rand(-(-rows // block[0]), -(-cols // block[1])) < density
    mask = drawn.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :cols]
    return SparseLinear.from_dense(torch.nn.Linear(cols, rows), mask, "block:{}x{}".format(*block))


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    rows=st.sampled_from([1, 16, 40, 131]),
    cols=st.sampled_from([3, 32, 72, 160]),
    batch=st.sampled_from([0, 1, 5, 129]),
    block=st.sampled_from([(16, 16), (32, 16), (16, 64), (128, 32)]),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_linear_layers_equal_to_float64(emulation, rows, cols, batch, block, density, dtype):
    layer = linear(rows, cols, block, density)
    plan, weight = layer.plan, layer.dense_weight().detach().to(dtype).double()
    x, bias = torch.randn(batch, cols).to(dtype), torch.randn(rows).to(dtype)
    values = plan.arrange(layer.values.detach().to(dtype))
    problem = problem_of(plan.shape, x.shape, plan.multiplied, plan.block, ONE_TAP, "cuda", dtype)
    product, index = cuda.Cuda.products["linear"], tile_index(plan)

    y = product.forward(x, values, bias, index, problem)
    expect_close(y, x.double() @ weight.t() + bias.double(), x.double().abs() @ weight.abs().t() + 3)
    dy = torch.randn_like(y)
    dx = product.input_grad(dy, values, index, problem, x.shape)
    expect_close(dx, dy.double() @ weight, dy.double().abs() @ weight.abs())

    dvalues, dbias = product.weight_grad(dy, x, index, values.shape[1:], problem, True)
    dense, size = dy.double().t() @ x.double(), dy.double().abs().t() @ x.double().abs()
    places = index.places[: dvalues.numel()].long()
    at = lambda t: torch.cat([t.flatten(), t.new_zeros(1)])[places].view(dvalues.shape)  # noqa: E731
    expect_close(dvalues, at(dense), at(size))
    expect_close(dbias, dy.double().sum(0), dy.double().abs().sum(0))


def convolution(channels, kernel, stride, padding, dilation, block, density):
    inputs, outputs, groups = channels
    dense = torch.nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    pattern = Pattern.parse("block:{}x{}".format(*block))
    grid = pattern.grid(tuple(dense.weight.shape), groups)
    places = grid.places((torch.rand(grid.size) < density).nonzero().view(-1)).view(-1)
    mask = torch.zeros(dense.weight.numel() + 1, dtype=torch.bool).index_fill(0, places, True)[:-1]
    return SparseConv2d.from_dense(dense, mask.view_as(dense.weight), str(pattern))


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    channels=st.sampled_from([(16, 32, 1), (19, 40, 1), (72, 16, 1), (64, 96, 2), (30, 48, 3)]),
    kernel=st.sampled_from([(3, 3), (2, 3), (1, 1)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    padding=st.integers(0, 2),
    dilation=st.sampled_from([(1, 1), (2, 1)]),
    size=st.sampled_from([(5, 5), (6, 11)]),
    block=st.sampled_from([(16, 16), (16, 32), (16, 64)]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    last=st.booleans(),
    dtype=st.sampled_from(list(ROUNDING)),
)
@example(
    channels=(16, 32, 1), kernel=(3, 3), stride=(1, 3), padding=0, dilation=(2, 1), size=(5, 5), block=(16, 16),
    density=0.0, last=True, dtype=torch.float32,
)  # fmt: skip
def test_convolutions_equal_to_float64(
    emulation, exact_float32, channels, kernel, stride, padding, dilation, size, block, density, last, dtype
):
    layer = convolution(channels, kernel, stride, padding, dilation, block, density)
    plan, memory = layer.plan, torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, channels[0], *size).contiguous(memory_format=memory).to(dtype)
    bias, values = torch.randn(channels[1]).to(dtype), plan.arrange(layer.values.detach().to(dtype))
    problem = problem_of(plan.shape, x.shape, plan.multiplied, plan.block, plan.window, "cuda", dtype)
    product, index = cuda.Cuda.products["conv2d"], tile_index(plan)

    def dense(x, weight, bias):
        (top, bottom, left, right), window = plan.window.padding, plan.window
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, window.stride, 0, window.dilation, window.groups)

    exact = [t.double().requires_grad_() for t in (x, layer.dense_weight().detach().to(dtype), bias)]
    wanted, sizes = dense(*exact), [t.detach().abs().requires_grad_() for t in exact]
    scale = dense(*sizes)
    y = product.forward(x, values, bias, index, problem)
    assert y.is_contiguous(memory_format=memory)
    expect_close(y, wanted.detach(), scale.detach())

    dy = torch.randn_like(y)
    grads = torch.autograd.grad(wanted, exact, dy.double())
    scales = torch.autograd.grad(scale, sizes, dy.double().abs())
    dx = product.input_grad(dy, values, index, problem, x.shape)
    assert dx.is_contiguous(memory_format=memory_format_of(dy))  # one pixel is in either format
    expect_close(dx, grads[0], scales[0])
    dvalues, dbias = product.weight_grad(dy, x, index, values.shape[1:], problem, True)
    places = index.places[: dvalues.numel()].long()
    at = lambda t: torch.cat([t.flatten(), t.new_zeros(1)])[places].view(dvalues.shape)  # noqa: E731
    expect_close(dvalues, at(grads[1]), at(scales[1]))
    expect_close(dbias, grads[2], scales[2])


def test_float32_is_exact_unless_torch_lets_it_round(emulation, monkeypatch):
    layer = linear(32, 64, (16, 16), 0.5)
    x, index = torch.randn(8, 64), tile_index(layer.plan)
    problem = problem_of(layer.plan.shape, x.shape, layer.plan.multiplied, (16, 16), ONE_TAP, "cuda", x.dtype)
    exact = x.double() @ layer.dense_weight().detach().double().t()
    errors = []
    for tf32 in (False, True):
        monkeypatch.setattr(cuda_blocks, "uses_tf32", lambda op, tf32=tf32: tf32)
        y = cuda.Cuda.products["linear"].forward(x, layer.values.detach(), None, index, problem)
        errors.append(float((y - exact).norm() / exact.norm()))
    assert errors[0] < 1e-6 < 1e-4 < errors[1] < 1e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_opcheck(emulation, groups, monkeypatch):
    monkeypatch.setattr(cuda.Cuda, "obstacle", lambda *_: None)
    layer = convolution((64, 32, groups), (3, 3), (2, 1), 1, (1, 1), (16, 16), 0.5)
    plan, window = layer.plan, layer.plan.window
    x, values = torch.randn(1, 64, 5, 4, requires_grad=True), plan.arrange(layer.values.detach()).requires_grad_()
    dy, bias = torch.randn(1, 32, *window.output_size(5, 4)), torch.randn(32, requires_grad=True)
    index, how = list(tile_index(plan)), (plan.shape, window.stride, window.padding, window.dilation, groups)
    args = [list(part) if isinstance(part, tuple) else part for part in how]
    opcheck(torch.ops.spfde.conv2d.default, (x, values, bias, index, *args, "cuda"))
    opcheck(torch.ops.spfde.conv2d_input_grad.default, (dy, values.detach(), index, [5, 4], *args, "cuda"))
    weight_grad = (dy, x.detach(), index, values.shape[1:], *args, True, "cuda")
    opcheck(torch.ops.spfde.conv2d_weight_grad.default, weight_grad)


def test_a_batch_that_lies_across_memory(emulation):
    layer = linear(32, 48, (16, 16), 0.5)
    x, index = torch.randn(48, 5).t(), tile_index(layer.plan)
    problem = problem_of(layer.plan.shape, x.shape, layer.plan.multiplied, (16, 16), ONE_TAP, "cuda", x.dtype)
    y = cuda.Cuda.products["linear"].forward(x, layer.values.detach(), None, index, problem)
    torch.testing.assert_close(y, x @ layer.dense_weight().detach().t())


def chosen(route="auto", dtype=torch.float16, shape=(4096, 4096), block=(64, 64), density=0.05):
    stored = int(density * shape[0] * shape[1])
    return rule.choose(route, "cuda", dtype, problem_of(shape, (8192, shape[1]), stored, block, ONE_TAP, "cuda", dtype))


def test_chosen_where_triton_is_missing_and_said_to_be_unmeasured(orin):
    choice = chosen()
    assert choice.kernel == "cuda"
    assert choice.reason.startswith("predicted") and choice.reason.endswith("not measured")
    assert chosen("cuda").reason == "forced by layer.kernel"
    assert chosen(density=0.9).kernel == "dense"


def test_convolutions_in_blocks_are_chosen_for_as_well(orin):
    orin.setattr(triton_kernel, "why_not", lambda device: None)  # Triton is preferred, but has no kernel for groups
    rule.forget()
    for groups, kernel in ((1, "triton"), (2, "cuda")):
        window = Window((3, 3), padding=(1, 1, 1, 1), groups=groups)
        shape = (1024, 1024 // groups, 3, 3)
        stored = round(0.05 * prod(shape))
        problem = problem_of(shape, (64, 1024, 14, 14), stored, (64, 64), window, "cuda", torch.float16)
        choice = rule.choose("auto", "cuda", torch.float16, problem)
        assert choice.kernel == kernel
        assert choice.reason.startswith("predicted")
        assert rule.choose("cuda", "cuda", torch.float16, problem).kernel == "cuda"


def test_triton_is_taken_where_both_can_run(orin):
    orin.setattr(triton_kernel, "why_not", lambda device: None)
    rule.forget()
    assert chosen().kernel == "triton"
    assert chosen("cuda").kernel == "cuda"


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ({"block": (8, 8)}, "CUDA C++ kernels: only blocks with sides of 16, 32, 64 or 128"),
        ({"block": (16, 1)}, "CUDA C++ kernels: only blocks"),
    ],
)
def test_what_it_cannot_do_it_says(orin, problem, reason):
    assert chosen(**problem).kernel == "dense"
    with pytest.raises(ValueError, match="expected kernel 'cuda' to run here") as error:
        chosen("cuda", **problem)
    assert reason in str(error.value)


def test_an_older_gpu_says_so(orin):
    orin.setattr(cuda, "gpu_here", lambda: replace(GPUS["Orin"], capability=(7, 5)))
    rule.forget()
    with pytest.raises(ValueError, match=r"need compute capability 8\.0, this GPU has 7\.5"):
        chosen("cuda")
