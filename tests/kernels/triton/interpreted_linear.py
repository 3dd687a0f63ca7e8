"""The linear kernels in Triton's interpreter against float64; run by test_interpreter.py with TRITON_INTERPRET=1."""

from itertools import product as pairs

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.problems import build, linear
from kernels.test_correctness import check
from torch import Tensor, nn
from torch.library import opcheck

from spfde import sparsify
from spfde.kernels import gpu as gpus
from spfde.kernels import spmm
from spfde.kernels.epilogue import ACTIVATIONS, PLAIN, Epilogue
from spfde.kernels.scatter import to_dense
from spfde.kernels.triton import config, interpreting
from spfde.kernels.triton.index import TileIndex, tile_index
from spfde.kernels.triton.sddmm import weight_grad
from spfde.kernels.triton.spmm import forward, input_grad, product
from spfde.sparse.plan import Plan
from spfde.sparse.tiles import build_tiles, stack_of

# Triton 3.6 turns a loop's bound into an int in a way that numpy 2.4 refuses and older ones warn of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")

BLOCKS = tuple(f"block:{height}x{width}" for height, width in pairs(config.SIZES, config.SIZES))
# Of a result's norm: operands are exact in float64, what is left is the rounding of the result (and of long sums).
ROUNDING = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    assert got.shape == exact.shape
    assert float((got.double() - exact).norm()) <= ROUNDING[got.dtype] * scale * float(exact.norm())


def test_this_is_the_interpreter():
    assert interpreting()


@given(problem=linear(BLOCKS))
@settings(max_examples=15)
def test_blocks(problem):
    check(problem, "triton")


@given(problem=linear(("unstructured", "block:4x1", "block:1x16", "block:24x16", "2:4", "channel")))
@settings(max_examples=10)
def test_any_other_pattern_by_occupied_tiles(problem):
    check(problem, "triton")


@pytest.mark.full
@given(problem=linear((*BLOCKS, "unstructured")))
@settings(max_examples=400)
def test_many_more(problem):
    check(problem, "triton")


def tiles_of(plan: Plan, together: int) -> TileIndex:
    """The index of a plan with so many block rows in a group, whatever the model would choose."""
    (height, width), (rows, cols) = plan.block, plan.grid.shape
    row, col, slot = plan.positions // cols, plan.positions % cols, torch.arange(plan.nnz)
    live = torch.ones(plan.nnz, dtype=torch.bool)
    return TileIndex(
        *plan.kernel_index,
        *build_tiles(row, col, slot, live, (rows, cols), together, stack_of(width)),
        *build_tiles(col, row, slot, live, (cols, rows), together, stack_of(height)),
    )


@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("together", [1, 2, 8])
@pytest.mark.parametrize("size", [(160, 128), (150, 121)])
def test_rows_worked_on_together_in_every_precision(dtype, together, size):
    plan, values = build(size, None, 0.3, 0, 1, "block:16x16")
    units, values = tiles_of(plan, together), plan.arrange(values).detach().to(dtype)
    x, dy, bias = (
        randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(70, size[1]), (70, size[0]), size[:1]])
    )
    weight = to_dense(values.double(), units, size)
    close(forward(x, values, Epilogue(bias), units, size[0]), x.double() @ weight.t() + bias.double())
    close(input_grad(dy, values, units, size[1]), dy.double() @ weight)
    dvalues, dbias = weight_grad(dy, x, units, (16, 16), True)
    exact = torch.nn.functional.pad((dy.double().t() @ x.double()).reshape(-1), (0, 1))[units.places]
    close(dvalues.reshape(-1), exact)
    close(dbias, dy.double().sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(64, 100), (130, 70)])
def test_dense_tiles_without_weights_are_skipped(dtype, size):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:64, 3] = mask[size[0] - 1, size[1] - 1] = True
    layer = sparsify(nn.Linear(size[1], size[0]), 0.5)  # any: its index is replaced
    layer = type(layer).from_dense(nn.Linear(size[1], size[0]), mask)
    weight, units = layer.dense_weight().to(dtype), tile_index(layer.plan)
    x, dy = randn(9, size[1], dtype=dtype), randn(9, size[0], dtype=dtype)
    y, dx = forward(x, weight, PLAIN, units, size[0]), input_grad(dy, weight, units, size[1])
    close(y, x.double() @ weight.double().t())
    close(dx, dy.double() @ weight.double())
    assert int((units.entry[:, 2] >= 0).sum()) == 2


@pytest.mark.parametrize("together", [1, 2])
def test_more_values_than_32_bits_count(together):
    plan, values = build((64, 64), None, 0.5, 0, 0, "block:16x16")
    units, x = tiles_of(plan, together), randn(4, 64)

    class Many(torch.Tensor):
        def numel(self):
            return 2**31

    assert torch.equal(forward(x, values.detach().as_subclass(Many), PLAIN, units, 64),
                       forward(x, values.detach(), PLAIN, units, 64))  # fmt: skip


def test_what_no_weight_reads_does_not_matter():
    plan, values = build((64, 96), None, 0.0, 0, 0, "block:16x16")
    plan, values = build((64, 96), None, 0.3, 0, 3, "block:16x16")
    units, x = tiles_of(plan, 1), randn(5, 96)
    unread = [c for c in range(6) if not bool((plan.positions % 6 == c).any())]
    rows_of_first = (plan.positions[plan.positions % 6 == 0] // 6).tolist()
    x[2, 5] = float("nan")
    for c in unread:
        x[:, c * 16] = float("nan")
    y = forward(x, plan.arrange(values).detach(), PLAIN, units, 64)
    bad = torch.isnan(y).view(5, 4, 16)
    assert bad[2].any(1).nonzero().view(-1).tolist() == rows_of_first
    assert not bad[[0, 1, 3, 4]].any()


def wide() -> tuple[Plan, Tensor]:
    """One block row of 90 blocks among 20 with one each: it is cut."""
    from spfde.sparse.pattern import Grid
    from spfde.sparse.plan import build_plan, index_from_positions

    grid = Grid(21 * 16, 90 * 16, 1, (16, 16))
    positions = torch.cat([torch.arange(7 * 90, 8 * 90), torch.arange(21) * 90 + 11]).unique()
    index = index_from_positions(positions, *grid.shape, positions.numel())
    return build_plan(index, (336, 1440), grid=grid), randn(positions.numel(), 16, 16, seed=5)


ACTS = {"none": lambda t: t, "relu": torch.relu, "relu6": nn.functional.relu6, "gelu": nn.functional.gelu}


@pytest.mark.parametrize(
    ("act", "after"), [(act, False) for act in ACTIVATIONS] + [pytest.param("gelu", True, id="after gelu")]
)
def test_long_rows_are_cut_and_joined_with_the_same_epilogue(act, after):
    plan, values = wide()
    units = tiles_of(plan, 1)
    assert int((units.work[:, 3] >= 0).sum()) > 1
    assert int((units.split[:, 0] >= 0).sum()) == 1
    x, bias, scale, rest = randn(7, 1440), randn(336, seed=1), randn(336, seed=4), randn(336, 7, seed=2).t()
    z = x.double() @ to_dense(values.double(), units, (336, 1440)).t()
    y = product(x, values, units.tiles, 336, False, Epilogue(bias, scale, rest, act, after))
    inner = z * scale.double() + bias.double()
    close(y, ACTS[act](inner) + rest.double() if after else ACTS[act](inner + rest.double()))
    close(product(x, values, units.tiles, 336, False, Epilogue(act=act)), ACTS[act](z))
    dy = randn(7, 336, seed=3)
    close(input_grad(dy, values, units, 1440), dy.double() @ to_dense(values.double(), units, (336, 1440)))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_an_activation_keeps_what_is_not_a_number(act):
    plan, values = build((16, 16), None, 1.0, 0, 0, "block:16x16")
    x = randn(3, 16)
    x[1, 4] = float("nan")
    y = product(x, values.detach(), tile_index(plan).tiles, 16, False, Epilogue(act=act))
    assert torch.isnan(y[1]).all()
    assert not torch.isnan(y[[0, 2]]).any()


@pytest.mark.parametrize("batch", [0, 3, 700])
@pytest.mark.parametrize("add", [False, True])
def test_weight_gradients_over_parts_of_the_tokens_and_on_top_of_others(batch, add):
    plan, _ = build((40, 70), None, 0.5, 3, 0, "block:32x16")
    units = tile_index(plan)
    x, dy = randn(batch, 70), randn(batch, 40, seed=1)
    before = randn(*plan.values_shape, seed=2)
    parts = config.parts(gpus.gpu_at(x.device), units.entry.shape[0] // stack_of(16), batch, 16)
    assert (parts > 1) == (batch == 700)
    out = before.clone() if add else None
    dvalues, dbias = weight_grad(dy, x, units, (32, 16), True, out)
    sums = torch.nn.functional.pad((dy.double().t() @ x.double()).reshape(-1), (0, 1))
    exact = sums[units.places].view(plan.values_shape) + (before.double() if add else 0)
    live = slice(0, plan.nnz)
    inside = (units.places < 40 * 70).view(plan.values_shape)[live]
    close(dvalues[live][inside], exact[live][inside], 2)
    assert torch.equal(dvalues[plan.nnz :], before[plan.nnz :] if add else torch.zeros(3, 32, 16))
    close(dbias, dy.double().sum(0), 2)
    assert (dvalues is out) == add


def test_the_same_bits_twice():
    plan, values = wide()
    x, dy, values = randn(70, 1440), randn(70, 336, seed=1), values.requires_grad_()
    runs = []
    for _ in range(2):
        y = spmm(x.requires_grad_(), values, plan, None, "triton")
        runs.append((y.detach(), *torch.autograd.grad(y, (x, values), dy)))
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("pattern", ["block:16x32", "unstructured"])
def test_opcheck(pattern):
    plan, values = build((40, 70), None, 0.4, 1, 0, pattern)
    values = plan.arrange(values).detach().requires_grad_()
    units, x, dy = list(tile_index(plan)), randn(5, 70).requires_grad_(), randn(5, 40)
    bias = randn(40).requires_grad_()
    opcheck(torch.ops.spfde.spmm.default, (x, values, bias, units, 40, "triton"))
    opcheck(torch.ops.spfde.spmm_input_grad.default, (dy, values.detach(), units, 70, "triton"))
    opcheck(torch.ops.spfde.sddmm.default, (dy, x.detach(), units, values.shape[1:], True, "triton"))


@pytest.mark.parametrize("pattern", ["block:16x16", "unstructured"])
def test_compiles_to_the_same_bits_and_follows_its_topology(pattern):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = sparsify(nn.Linear(96, 64), 0.7, pattern=pattern), randn(20, 96).requires_grad_()
    layer.kernel = "triton"
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    layer(x)  # builds the tiles
    for seed in range(3):
        assert torch.equal(compiled(x), layer(x))
        assert layer.kernel == "triton"
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
        grads = [torch.autograd.grad(f(x).square().sum(), (x, layer.values, layer.bias)) for f in (compiled, layer)]
        assert all(map(torch.equal, *grads))
        generator = torch.Generator().manual_seed(seed)
        layer.move_to(torch.randperm(layer.grid.size, generator=generator)[: layer.nnz].sort().values)
        nn.init.normal_(layer.values)
        layer(x)
    assert counter.frame_count == 1


@given(st.integers(0, 2**16))
@settings(max_examples=5)
def test_a_step_of_training_is_the_dense_one_where_weights_are(seed):
    torch.manual_seed(seed)
    layer, x = sparsify(nn.Linear(80, 48), 0.5, pattern="block:16x16"), randn(33, 80, seed=seed)
    twin = layer.to_dense()
    mask = layer.mask()
    layer.kernel = "triton"
    layer(x).square().mean().backward()
    twin(x).square().mean().backward()
    torch.testing.assert_close(to_dense(layer.values.grad, layer.plan.kernel_index, (48, 80)), twin.weight.grad * mask)
    torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


@pytest.mark.parametrize("dense", [nn.Linear(48, 40), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3)], ids=str)
def test_tiles_first_asked_for_in_inference_mode_serve_a_compiled_step(dense):
    torch._dynamo.reset()
    layer = sparsify(dense, 0.5, pattern="block:16x16")
    layer.kernel, x = "triton", randn(*((5, 48) if isinstance(dense, nn.Linear) else (1, 32, 5, 5)))
    with torch.inference_mode():
        y = layer(x)
    assert torch.equal(torch.compile(layer, backend="aot_eager")(x), y)
    layer(x).sum().backward()
    eager = layer.values.grad
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager")(x).sum().backward()
    assert torch.equal(layer.values.grad, eager)


def test_tiles_are_no_part_of_a_compiled_graph():
    torch._dynamo.reset()
    layer, x = sparsify(nn.Linear(96, 64), 0.5, pattern="block:16x16"), randn(8, 96)
    layer.kernel = "triton"
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    with torch.inference_mode():  # of what is made in it nothing could be moved in place
        compiled(x), compiled(x)
    assert counter.frame_count == 1
    assert not any("sort" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
    layer.move_to(torch.arange(layer.nnz))
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_tiles_first_asked_for_by_an_export_are_real():
    layer, x = sparsify(nn.Linear(96, 64), 0.5, pattern="block:16x16"), randn(8, 96)
    layer.kernel = "triton"
    exported = torch.export.export(layer, (randn(8, 96),)).module()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert torch.equal(exported(x), layer(x))


def test_rows_that_share_a_program_are_not_multiplied_by_several_entries_at_once(monkeypatch):
    row, col = torch.tensor([0, 1]), torch.tensor([0, 1])
    tiles = build_tiles(row, col, torch.arange(2), torch.ones(2, dtype=torch.bool), (2, 2), 2, 8)
    monkeypatch.setattr("spfde.kernels.triton.spmm.launch_of", lambda *_: config.Config(32, 32, 4, 2))
    with pytest.raises(Exception, match="one entry at a time"):
        product(randn(8, 32), randn(2, 16, 16), tiles, 32, False)
