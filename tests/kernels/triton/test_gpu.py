"""What only a GPU can tell of the linear kernels: real bfloat16 and TF32, races, streams, CUDA graphs, synchronisation.

`pytest -m gpu`; skipped without CUDA. `test_on_fake_cuda.py` runs them on a CPU, small, in Triton's interpreter.
"""

import os

import pytest
import torch
from torch import Tensor, nn

from spfde import sparsify
from spfde.kernels import spmm
from spfde.kernels.scatter import to_dense
from spfde.nn import SparseLinear
from spfde.sparse.plan import Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PATTERNS = ["block:16x16", "block:64x32", "block:64x64", "block:128x128", "unstructured"]
SMALL = os.environ.get("TRITON_INTERPRET") == "1"  # no GPU at work: every launch takes its time
ROWS, COLS, MANY = (160, 136, 70) if SMALL else (640, 520, 1000)
real = pytest.mark.skipif(SMALL, reason="no part of a fake GPU")
# Of a result's norm. float32: exact, then with operands rounded to TF32.
ROUNDING = {"float32": 3e-6, "tf32": 2e-3, "float16": 1e-3, "bfloat16": 6e-3}


def on_gpu(pattern: str, shape: tuple[int, int] = (ROWS, COLS), density: float = 0.3) -> tuple[Plan, Tensor]:
    layer = sparsify(nn.Linear(shape[1], shape[0]), 1 - density, pattern=pattern).cuda()
    return layer.plan, layer.values.detach()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.fixture
def tf32(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [("float32", False), ("float32", True), ("float16", False), ("bfloat16", False)],
    indirect=["tf32"],
)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("batch", [1, 33, MANY])
def test_every_precision_against_float64(pattern, dtype, tf32, batch):
    plan, values = on_gpu(pattern)
    kind = getattr(torch, dtype)
    x, values, bias = (t.to(kind).requires_grad_() for t in (randn(batch, COLS), values, randn(ROWS, seed=1)))
    y = spmm(x, values, plan, bias, "triton")
    dy = randn(batch, ROWS, seed=2).to(kind)
    got = [y.detach(), *torch.autograd.grad(y, (x, values, bias), dy)]
    exact_x, exact_values, exact_bias = (t.detach().double().requires_grad_() for t in (x, values, bias))
    weight = to_dense(plan.arrange(exact_values), plan.kernel_index, plan.shape)
    exact = nn.functional.linear(exact_x, weight, exact_bias)
    grads = torch.autograd.grad(exact, (exact_x, exact_values, exact_bias), dy.double())
    bound = ROUNDING["tf32" if tf32 else dtype]
    for mine, right in zip(got, [exact.detach(), *grads], strict=True):
        assert mine.dtype == kind
        assert float((mine.double() - right).norm()) <= bound * float(right.norm())


def step(plan: Plan, values: Tensor, x: Tensor, dy: Tensor) -> list[Tensor]:
    x, values = x.detach().requires_grad_(), values.detach().requires_grad_()
    y = spmm(x, values, plan, None, "triton")
    return [y.detach(), *torch.autograd.grad(y, (x, values), dy)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_races_the_same_bits_in_every_run(pattern):
    rows, cols, batch, runs = (128, 256, 70, 2) if SMALL else (1024, 2048, 4096, 20)
    plan, values = on_gpu(pattern, (rows, cols), 0.05)
    x, dy = randn(batch, cols), randn(batch, rows, seed=1)
    first = step(plan, values, x, dy)
    for _ in range(runs):
        assert all(map(torch.equal, step(plan, values, x, dy), first))


@real
def test_a_stream_of_its_own():
    plan, values = on_gpu("block:64x64")
    x, dy = randn(2048, COLS), randn(2048, ROWS, seed=1)
    expected = step(plan, values, x, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)  # whoever does not wait for this stream reads zeros
        late.copy_(x)
        got = step(plan, values, late, dy)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


@real
@pytest.mark.parametrize("pattern", ["block:16x16", "block:64x64", "unstructured"])
def test_captured_in_a_cuda_graph(pattern):
    plan, values = on_gpu(pattern)
    x, dy = randn(MANY, COLS), randn(MANY, ROWS, seed=1)
    step(plan, values, x, dy)  # compiles, and builds the tiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(plan, values, x, dy)
    for seed in range(2, 4):
        x.copy_(randn(MANY, COLS, seed=seed))
        graph.replay()
        assert all(map(torch.equal, got, step(plan, values, x, dy)))


def test_a_step_asks_the_device_for_nothing():
    plan, values = on_gpu("block:64x64")
    x, dy = randn(MANY, COLS), randn(MANY, ROWS, seed=1)
    step(plan, values, x, dy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(plan, values, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@real
def test_a_layer_says_which_kernel_ran_and_compiles_to_the_same_bits():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(4096, 4096), 0.95, pattern="block:64x64").cuda().bfloat16()
    assert isinstance(layer, SparseLinear)
    x = randn(8192, 4096).bfloat16()
    y = layer(x)
    assert layer.kernel in ("triton", "dense")
    assert "predicted" in layer.choice.reason or "measured" in layer.choice.reason
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), y)


def test_a_cpu_plan_and_a_gpu_plan_walk_the_same_tiles():
    from spfde.kernels.triton.index import tiles_of

    for pattern in PATTERNS:
        layer = sparsify(nn.Linear(COLS, ROWS), 0.7, pattern=pattern)
        here, there = tiles_of(layer.plan), tiles_of(layer.cuda().plan)
        for one, other in zip((*here[0], *here[1]), (*there[0], *there[1]), strict=True):
            assert torch.equal(one, other.cpu())
