"""The kernel "cuda" on a GPU, against float64 (pytest -m gpu)."""

from __future__ import annotations

import pytest
import torch

from spfde._native import load
from spfde.nn import SparseLinear

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "cols", "batch", "density"), [(1, 1, 1, 1.0), (131, 67, 130, 0.2), (1024, 4096, 2048, 0.02)]
)
def test_equal_to_float64(dtype, rows, cols, batch, density):
    core = load()
    if isinstance(core, ImportError) or not core.cuda_archs():
        pytest.skip("spfde was built without nvcc")
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
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    dense = (dy.double().t() @ x.double())[mask]
    for got, exact in ((y, wanted), (dx, dy.double() @ weight), (dvalues.flatten()[: len(dense)], dense)):
        assert (got.double() - exact).norm() <= tolerance * exact.norm()
