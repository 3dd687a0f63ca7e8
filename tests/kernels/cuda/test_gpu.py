"""The kernel "cuda" on a GPU, against float64 (pytest -m gpu)."""

from __future__ import annotations

import pytest
import torch

import spfde
from spfde._native import load
from spfde.kernels import norm_act_cuda
from spfde.kernels.norm_act import norm_act, norm_act_ref
from spfde.nn import SparseLinear

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def built_with_nvcc():
    core = load()
    if isinstance(core, ImportError) or not core.cuda_archs():
        pytest.skip("spfde was built without nvcc")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "cols", "batch", "density"), [(1, 1, 1, 1.0), (131, 67, 130, 0.2), (1024, 4096, 2048, 0.02)]
)
def test_equal_to_float64(dtype, rows, cols, batch, density):
    layer = SparseLinear.from_dense(torch.nn.Linear(cols, rows), mask=torch.rand(rows, cols) < density).to(
        "cuda", dtype
    )
    layer.kernel = "cuda"
    x = torch.randn(batch, cols, device="cuda", dtype=dtype, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    dx, dvalues = torch.autograd.grad(y, (x, layer.values), dy)
    weight = layer.to_dense().weight.detach().double()
    mask = layer.mask().bool()
    wanted = x.detach().double() @ weight.t() + layer.bias.detach().double()
    dense = (dy.double().t() @ x.double())[mask]
    for got, exact in ((y, wanted), (dx, dy.double() @ weight), (dvalues.flatten()[: len(dense)], dense)):
        assert (got.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("pattern", ["block:16x16", "block:32x64"])
@pytest.mark.parametrize(("rows", "cols", "batch"), [(48, 100, 37), (1024, 512, 640)])
def test_blocks_are_equal_to_float64(dtype, pattern, rows, cols, batch):
    layer = spfde.sparsify(torch.nn.Linear(cols, rows), 0.7, pattern=pattern).to("cuda", dtype)
    layer.kernel = "cuda"
    x = torch.randn(batch, cols, device="cuda", dtype=dtype, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    dx, dvalues, dbias = torch.autograd.grad(y, (x, layer.values, layer.bias), dy)
    weight = layer.dense_weight().detach().double()
    wanted = x.detach().double() @ weight.t() + layer.bias.detach().double()
    dense = torch.cat([(dy.double().t() @ x.detach().double()).flatten(), weight.new_zeros(1)])  # the last: outside
    stored = dense[layer.grid.places(layer.positions()).view(-1)]
    found = (
        (y, wanted),
        (dx, dy.double() @ weight),
        (dvalues[: layer.nnz].flatten(), stored),
        (dbias, dy.double().sum(0)),
    )
    for got, exact in found:
        assert (got.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("pattern", ["block:16x16", "block:32x64"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "groups", "size"), [((24, 40), 1, (5, 6)), ((48, 96), 3, (9, 7)), ((256, 128), 1, (28, 28))]
)
def test_convolutions_in_blocks_are_equal_to_float64(monkeypatch, dtype, pattern, stride, channels, groups, size):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    dense = torch.nn.Conv2d(*channels, 3, stride, 1, groups=groups)
    layer = spfde.sparsify(dense, 0.6, pattern=pattern).to("cuda", dtype)
    layer.kernel = "cuda"
    x = torch.randn(3, channels[0], *size, device="cuda", dtype=dtype, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, (x, layer.values, layer.bias), dy)]
    leaves = [t.detach().double().requires_grad_() for t in (x, layer.dense_weight(), layer.bias)]
    wanted = torch.nn.functional.conv2d(*leaves, stride, 1, 1, groups)
    dx, dweight, dbias = torch.autograd.grad(wanted, leaves, dy.double())
    places = layer.grid.places(layer.positions()).view(-1)
    stored = torch.cat([dweight.flatten(), dweight.new_zeros(1)])[places]  # the last: outside
    found[2] = found[2][: layer.nnz].flatten()
    for got, exact in zip(found, (wanted, dx, stored, dbias), strict=True):
        assert (got.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 7, 5, 5), (64, 96, 28, 28)])
@pytest.mark.parametrize("training", [True, False])
def test_norm_act_is_equal_to_float64(monkeypatch, dtype, memory, shape, training):
    monkeypatch.setattr(norm_act_cuda.triton, "available", lambda: False)
    x, residual, dy = (torch.randn(shape, device="cuda").to(dtype, memory_format=memory) for _ in range(3))
    weight, bias, mean, var = torch.rand(4, shape[1], device="cuda") + 0.5
    assert norm_act_cuda.runs(x, residual, mean, var, weight, bias, training)
    found = []
    for op, to in ((norm_act, lambda t: t), (norm_act_ref, torch.Tensor.double)):
        leaves = [to(t).detach().requires_grad_() for t in (x, weight, bias)]
        moved = [to(t).clone() for t in (mean, var)]
        y = op(leaves[0], *moved, *leaves[1:], residual=to(residual), training=training)
        found.append([y, *moved, *torch.autograd.grad(y, leaves, to(dy))])
    for got, exact in zip(*found, strict=True):
        assert (got.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()
