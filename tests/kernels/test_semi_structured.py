"""The kernel "semi_structured": what is packed, against torch's own unpacking, and what is said where it cannot run."""

from __future__ import annotations

import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from spfde.kernels import semi_structured as semi
from spfde.kernels.problem import problem_of
from spfde.kernels.registry import get, sparse_kernels
from spfde.nn import SparseLinear
from spfde.sparse.kernel_index import ONE_TAP

ROWS, COLS = 64, 128


def one_way(rows, cols):
    """A mask of two in every four columns."""
    return torch.rand(rows, cols // 4, 4).argsort(-1).argsort(-1).lt(2).view(rows, cols)


def both_ways(rows, cols):
    """One that is so along the rows too: tiles of 4x4 with two in every row and column, their rows in any order."""
    tile = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    tiles = torch.stack([tile[torch.randperm(4)][:, torch.randperm(4)] for _ in range(rows * cols // 16)])
    return tiles.view(rows // 4, cols // 4, 4, 4).transpose(1, 2).reshape(rows, cols)


@pytest.fixture
def cutlass(monkeypatch):
    """torch's products on the CPU, of what torch unpacks; as strict as they are. The list of their operands' shapes."""
    shapes = []

    def product(packed, meta, x):
        assert packed.is_contiguous() and meta.dtype == torch.int16 and packed.dtype == x.dtype
        assert x.shape[1] % 8 == 0 and x.t().is_contiguous()
        shapes.append(tuple(packed.shape))
        return sparse_semi_structured_to_dense_cutlass(packed, meta) @ x

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", product)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", lambda b, p, m, x: product(p, m, x) + b[:, None])
    monkeypatch.setattr(semi, "backend", lambda: "cutlass")
    return shapes


@pytest.fixture
def cusparselt(monkeypatch):
    def multiply(compressed, x, bias=None, transpose_result=False):
        assert transpose_result and x.shape[1] % 16 == 0
        y = (compressed @ x).t()
        return y if bias is None else y + bias

    def compress(weight):
        assert weight.is_contiguous() and (weight.view(len(weight), -1, 4) != 0).sum(-1).le(2).all()
        return weight

    monkeypatch.setattr(torch, "_cslt_compress", compress, raising=False)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply, raising=False)
    monkeypatch.setattr(semi, "backend", lambda: "cusparselt")


def products(mask, batch, dtype, capacity=0):
    """(y, dx, dvalues, dbias) and the same in float64, of a layer with this mask."""
    layer = SparseLinear.from_dense(torch.nn.Linear(mask.shape[1], mask.shape[0]), mask=mask, pattern="2:4")
    plan, product = layer.plan, semi.SemiStructured.products["linear"]
    values, bias = layer.values.detach().to(dtype), layer.bias.detach().to(dtype)
    x, dy = torch.randn(batch, mask.shape[1]).to(dtype), torch.randn(batch, mask.shape[0]).to(dtype)
    problem = problem_of(plan.shape, x.shape, int(mask.sum()), (1, 1), ONE_TAP, "cuda", dtype)
    index = get("semi_structured").index(plan)
    got = (
        product.forward(x, values, bias, index, problem),
        product.input_grad(dy, values, index, problem, x.shape),
        *product.weight_grad(dy, x, index, values.shape[1:], problem, True),
    )
    weight = torch.zeros(mask.shape).double()
    weight[mask] = values.flatten().double()
    x, dy = x.double(), dy.double()
    dense = dy.t() @ x
    return got, (x @ weight.t() + bias.double(), dy @ weight, dense[mask].view(-1, 1, 1), dy.sum(0))


@pytest.mark.parametrize("dtype", semi.DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 16, 37])
@pytest.mark.parametrize("mask", [one_way, both_ways])
@pytest.mark.parametrize("backend", ["cutlass", "cusparselt"])
def test_products_equal_to_float64(request, backend, mask, batch, dtype):
    request.getfixturevalue(backend)
    got, wanted = products(mask(ROWS, COLS), batch, dtype)
    rounding = {torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    for mine, exact in zip(got, wanted, strict=True):
        assert mine.dtype == dtype and mine.shape == exact.shape and mine.is_contiguous()
        assert (mine.double() - exact).norm() <= rounding * exact.norm()


def test_the_input_gradient_is_sparse_where_the_mask_is_so_both_ways(cutlass):
    products(one_way(ROWS, COLS), 16, torch.float16)
    assert cutlass == [(ROWS, COLS // 2)]
    cutlass.clear()
    products(both_ways(ROWS, COLS), 16, torch.float16)
    assert cutlass == [(ROWS, COLS // 2), (COLS, ROWS // 2)]
    cutlass.clear()
    products(both_ways(ROWS // 2, COLS), 16, torch.float16)  # too few outputs to be inputs
    assert cutlass == [(ROWS // 2, COLS // 2)]


def test_torch_unpacks_the_stored_values_as_they_lie(seeded):
    mask = both_ways(ROWS, COLS)
    weight = torch.where(mask, torch.randn(ROWS, COLS), 0).half()
    layer = SparseLinear.from_dense(torch.nn.Linear(COLS, ROWS), mask=mask, pattern="2:4")
    index = semi.index_of(layer.plan)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(weight[mask].view(ROWS, -1), index.meta), weight)
    packed = weight[mask][index.t_perm].view(COLS, -1)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, index.t_meta), weight.t())


def test_the_metadata_is_made_once_for_each_topology(monkeypatch):
    made, metadata = [], semi.metadata
    monkeypatch.setattr(semi, "metadata", lambda *args: made.append(1) or metadata(*args))
    layer = SparseLinear.from_dense(torch.nn.Linear(COLS, ROWS), mask=one_way(ROWS, COLS), pattern="2:4")
    first = semi.index_of(layer.plan).meta.clone()
    semi.index_of(layer.plan)
    assert len(made) == 2  # one for each direction
    mask = one_way(ROWS, COLS)
    layer.move_to(mask.view(-1).nonzero().view(-1))
    assert len(made) == 4
    assert not torch.equal(semi.index_of(layer.plan).meta, first)


def test_shapes_of_torchs_own_products():
    x = torch.empty(37, COLS, dtype=torch.float16, device="meta")
    packed, meta = (
        torch.empty_like(x[:1]).expand(ROWS, COLS)[:, : COLS // 2].contiguous(),
        torch.empty(ROWS, COLS // 16, dtype=torch.int16, device="meta"),
    )
    assert semi.multiply(x, packed, meta).shape == (37, ROWS)


def test_another_mask_is_refused():
    mask = torch.rand(ROWS, COLS).view(ROWS, -1).argsort(-1).argsort(-1) < COLS // 2  # half of each row
    layer = SparseLinear.from_dense(torch.nn.Linear(COLS, ROWS), mask=mask)
    with pytest.raises(ValueError, match="expected two of every four inputs stored .* try pattern='2:4'"):
        semi.index_of(layer.plan)
    few = one_way(ROWS, COLS)
    few[0, :4] = False  # a group may hold fewer
    layer = SparseLinear.from_dense(torch.nn.Linear(COLS, ROWS), mask=few, pattern="2:4")
    with pytest.raises(ValueError, match="got another mask"):
        semi.index_of(layer.plan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "run on CUDA, not on cpu"),
        ({"dtype": torch.float32}, "float16 and bfloat16 (try torch.autocast), not float32"),
        ({"shape": (64, 64, 1, 1), "x": (2, 64, 4, 4)}, "not for convolutions"),
        ({"stored": 64 * 64}, "does not store two of every four"),
        ({"block": (4, 1)}, "does not store two of every four"),
        ({"shape": (33, 64), "stored": 33 * 32}, "multiples of 32 outputs and 64 inputs, not 33 and 64"),
        ({}, "no 2:4 product on this GPU"),
    ],
)
def test_what_it_cannot_do_it_says(monkeypatch, change, reason):
    given = {"device": "cuda", "dtype": torch.float16, "shape": (64, 64), "x": (2, 64), "stored": 64 * 32} | change
    monkeypatch.setattr(semi, "backend", lambda: "")
    problem = problem_of(
        given["shape"],
        given["x"],
        given["stored"],
        given.get("block", (1, 1)),
        ONE_TAP,
        given["device"],
        given["dtype"],
    )
    assert reason in get("semi_structured").obstacle(given["device"], given["dtype"], problem)
    monkeypatch.setattr(semi, "backend", lambda: "cutlass")
    assert change or get("semi_structured").obstacle("cuda", torch.float16, problem) is None


@pytest.mark.parametrize(
    ("capability", "cusparselt", "found"),
    [((7, 5), True, ""), ((8, 0), False, "cutlass"), ((8, 7), True, "cutlass"), ((9, 0), True, "cusparselt"),
     ((9, 0), False, ""), ((12, 1), True, "cusparselt")],
)  # fmt: skip
def test_which_of_torchs_products_a_gpu_has(monkeypatch, capability, cusparselt, found):
    monkeypatch.setattr(semi, "gpu_here", lambda: type("Gpu", (), {"capability": capability}))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    assert semi.backend() == found


def test_nobody_chooses_it_by_itself():
    assert "semi_structured" not in [kernel.name for device in ("cpu", "cuda") for kernel in sparse_kernels(device)]
    problem = problem_of((64, 64), (2, 64), 64 * 32, (1, 1), ONE_TAP, "cuda", torch.float16)
    assert not get("semi_structured").predict(torch.float16, problem).pays


def test_a_layer_says_why_it_cannot_have_it():
    layer = SparseLinear.from_dense(torch.nn.Linear(COLS, ROWS), mask=one_way(ROWS, COLS), pattern="2:4")
    layer.kernel = "semi_structured"
    with pytest.raises(ValueError, match=r"expected kernel 'semi_structured' to run here, got: .* CUDA, not on cpu"):
        layer(torch.randn(2, COLS))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", semi.DTYPES)
@pytest.mark.parametrize("mask", [one_way, both_ways])
def test_a_step_on_a_gpu_is_that_of_the_masked_dense_product(mask, dtype):
    if not semi.backend():
        pytest.skip("torch has no 2:4 product for this GPU")
    layer = SparseLinear.from_dense(torch.nn.Linear(1024, 512), mask=mask(512, 1024), pattern="2:4").to("cuda", dtype)
    x = torch.randn(300, 1024, device="cuda", dtype=dtype, requires_grad=True)
    results = []
    for kernel in ("semi_structured", "dense"):
        layer.kernel = kernel
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))])
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).norm() <= 2e-2 * wanted.norm()
