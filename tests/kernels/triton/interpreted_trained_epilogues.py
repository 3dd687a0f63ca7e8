"""What follows a product that is trained, in Triton's interpreter: one kernel, its gradients against float64."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernels.problems import build
from kernels.triton.fused_models import close, images
from kernels.triton.interpreted_linear import wide
from torch import Tensor, nn

from spfde.kernels import call
from spfde.kernels.conv2d import conv2d_with_epilogue
from spfde.kernels.epilogue import ACTIVATIONS, Epilogue
from spfde.kernels.recompute import without_saving
from spfde.kernels.scatter import to_dense
from spfde.kernels.spmm import spmm_with_epilogue
from spfde.kernels.triton import config
from spfde.kernels.triton.index import TileIndex, tiles_of
from spfde.sparse.kernel_index import ONE_TAP, Window
from spfde.sparse.plan import Plan

ACTS = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu}
ENDS = [(act, where) for act in ACTIVATIONS for where in ("none", "before", "after")]
THREE, ONE = Window((3, 3), (2, 1), (1, 1, 1, 1)), Window((1, 1))
LAYERS = {
    "linear": ((40, 48), ONE_TAP, (5, 48)), "tokens": ((40, 48), ONE_TAP, (2, 3, 48)),
    "nothing": ((40, 48), ONE_TAP, (0, 48)), "conv": ((24, 16, 3, 3), THREE, (2, 16, 5, 4)),
    "1x1": ((24, 16, 1, 1), ONE, (2, 16, 3, 4)),
}  # fmt: skip


def fused(x: Tensor, values: Tensor, plan: Plan, window: Window, make: Callable[[], Epilogue]) -> Tensor | None:
    if x.dim() == 4:
        return conv2d_with_epilogue(x, values, plan, make, "triton")
    return spmm_with_epilogue(x, values, plan, make, "triton")


def product(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    return F.linear(x, weight) if x.dim() < 4 else F.conv2d(x, weight, None, window.stride, window.padding[::2])


def problem(name: str, dtype: torch.dtype = torch.float32) -> tuple[Plan, Window, dict[str, Tensor]]:
    """A layer's plan, and what its gradients are asked of: spread widely enough for all of ReLU6."""
    shape, window, size = LAYERS[name]
    plan, values = build(shape, window, 0.6, 2, 0, "block:16x16")
    parts = {"x": 3 * images(*size), "values": values.detach(), "bias": images(shape[0], seed=1)}
    y = product(parts["x"], to_dense(plan.arrange(parts["values"]), plan.kernel_index, plan.shape), window)
    parts["residual"] = images(*y.shape, seed=2)
    return plan, window, {n: t.to(dtype).requires_grad_() for n, t in parts.items()}


def ended(y: Tensor, bias: Tensor, residual: Tensor, act: str, where: str) -> Tensor:
    z = y + (bias if y.dim() < 4 else bias.view(-1, 1, 1))
    return ACTS[act](z + residual) if where == "before" else ACTS[act](z) + (residual if where == "after" else 0)


def with_long(cases: list[tuple], plain: Callable[..., bool]) -> list:
    """The cases, those that are not in a plain run marked `full`."""
    return [case if plain(*case) else pytest.param(*case, marks=pytest.mark.full) for case in cases]


EVERY = [(name, act, where) for name in LAYERS for act, where in ENDS]
FEW = (("gelu", "before"), ("relu6", "after"))


@pytest.mark.parametrize(
    ("name", "act", "where"), with_long(EVERY, lambda name, *end: name in ("linear", "conv") or tuple(end) in FEW)
)
def test_every_end_has_its_gradients(name, act, where):
    plan, window, parts = problem(name)
    wide = {n: t.detach().double().requires_grad_() for n, t in parts.items()}
    rest = None if where == "none" else parts["residual"]
    end = Epilogue(parts["bias"], None, rest, act, where == "after")
    y = fused(parts["x"], parts["values"], plan, window, lambda: end)
    weight = to_dense(plan.arrange(wide["values"]), plan.kernel_index, plan.shape)
    expected = ended(product(wide["x"], weight, window), wide["bias"], wide["residual"], act, where)
    close(y.detach(), expected.detach())
    dy = images(*y.shape, seed=3)
    asked = [n for n in parts if n != "residual" or rest is not None]
    got = torch.autograd.grad(y, [parts[n] for n in asked], dy)
    want = torch.autograd.grad(expected, [wide[n] for n in asked], dy.double())
    for mine, exact in zip(got, want, strict=True):
        close(mine, exact)


@pytest.mark.parametrize(("name", "products"), [
    ("linear", ("spmm_kernel", "sddmm_kernel")), ("1x1", ("spmm_kernel", "sddmm_kernel")),
    ("conv", ("conv2d_kernel", "conv2d_grad_kernel")),
])  # fmt: skip
def test_no_gradient_is_made_that_nobody_asks_for(launched, name, products):
    plan, window, parts = problem(name)
    needed = {"x": products[:1], "values": products[1:], "bias": (), "residual": ()}
    for alone in parts:
        given = {n: t.detach().requires_grad_(n == alone) for n, t in parts.items()}
        end = Epilogue(given["bias"], None, given["residual"], "gelu")
        y = fused(given["x"], given["values"], plan, window, lambda end=end: end)
        launched.clear()
        y.sum().backward()
        assert tuple(launched) == needed[alone]
        assert given[alone].grad is not None


@pytest.mark.parametrize("name", ["linear", "tokens", "conv"])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("act", ["none", "gelu"])
def test_gradients_of_two_residuals_have_memory_of_their_own(name, where, act):
    plan, window, parts = problem(name)
    first, second = (parts["residual"].detach().clone().requires_grad_() for _ in range(2))
    ends = [Epilogue(parts["bias"], None, r, act, where == "after") for r in (first, second)]
    y = sum(fused(parts["x"], parts["values"], plan, window, lambda end=end: end) for end in ends)
    dy = torch.ones_like(y)
    y.backward(dy)
    assert len({t.data_ptr() for t in (first.grad, second.grad, dy)}) == 3


@pytest.mark.parametrize("name", ["linear", "tokens", "conv"])
@pytest.mark.parametrize("act", ["none", "relu6", "gelu"])
def test_a_result_may_be_changed_in_place_where_torch_lets_it(name, act):
    plan, window, parts = problem(name)
    grads = []
    for change in (torch.mul, torch.Tensor.mul_):
        y = fused(parts["x"], parts["values"], plan, window, lambda: Epilogue(parts["bias"], act=act))
        grads.append(torch.autograd.grad(change(y, 2).sum(), [parts[n] for n in ("x", "values", "bias")]))
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "conv", "1x1", "cut"])
def test_the_activation_sees_what_its_gradient_will_see(name, dtype):
    from spfde.kernels.triton import conv2d, spmm

    if name == "cut":  # a group's blocks are shared out over programs, and their sums joined
        (plan, values), window = wide(), ONE_TAP
        given = images(5, 1440), values, images(336, seed=1), images(5, 336, seed=2)
    else:
        plan, window, parts = problem(name)
        given = (t.detach() for t in parts.values())
    x, values, bias, residual = (t.to(dtype) for t in given)
    forward, tiles = conv2d.forward if x.dim() == 4 else spmm.forward, tiles_of(plan)
    units = TileIndex(*plan.kernel_index, *tiles[0], *tiles[1])
    where = (plan.shape, window) if x.dim() == 4 else (plan.rows,)
    kept = torch.full_like(residual, float("nan"))
    y = forward(x, values, Epilogue(bias, None, residual, "gelu", pre_act_out=kept), units, *where)
    near = torch.finfo(dtype).eps  # and in float32 1 + erf cancels far below 0
    torch.testing.assert_close(y.double(), F.gelu(kept.double()), rtol=2 * near, atol=1e-6)
    assert torch.equal(kept, forward(x, values, Epilogue(bias, None, residual), units, *where))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("where", ["none", "before", "after"])
def test_a_tall_tile_is_finished_part_by_part(monkeypatch, act, where):
    from spfde.kernels.triton import spmm

    tall = config.Config(config.MOST_TOKENS, 16, 4, 1)
    monkeypatch.setattr(config, "product_config", lambda *args: tall)
    plan, values = build((200, 48), ONE_TAP, 0.7, 1, 0, "block:128x16")
    values, tiles = values.detach(), tiles_of(plan)
    units = TileIndex(*plan.kernel_index, *tiles[0], *tiles[1])
    x, bias, rest = images(300, 48), images(200, seed=1), images(300, 200, seed=2)
    kept = torch.empty_like(rest)
    end = Epilogue(bias, None, None if where == "none" else rest, act, where == "after", kept)
    y = spmm.forward(x, values, end, units, 200)
    z = F.linear(x.double(), to_dense(plan.arrange(values).double(), plan.kernel_index, plan.shape))
    close(y, ended(z, bias, rest, act, where))
    close(kept, ended(z, bias, rest, "none", "before" if where == "before" else "none"))


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize(("act", "where"), [end for end in ENDS if end[1] != "none" and end[0] != "relu6"])
def test_a_float32_residual_makes_a_float32_sum_of_half_products(name, act, where):
    plan, window, parts = problem(name)
    half = {n: t.detach().to(torch.float32 if n == "residual" else torch.float16) for n, t in parts.items()}
    wide = {n: t.double().requires_grad_() for n, t in half.items()}
    x, values, bias, residual = (t.requires_grad_() for t in half.values())
    found = call.find(x, values, plan, None, "triton")
    ended_call = replace(found, act=act, residual_after_act=where == "after")
    y = call._Product.apply(x, plan.arrange(values), bias, residual, plan, ended_call, residual.shape)
    weight = to_dense(plan.arrange(wide["values"]), plan.kernel_index, plan.shape)
    expected = ended(product(wide["x"], weight, window), wide["bias"], wide["residual"], act, where)
    assert y.dtype == torch.float32
    close(y.detach(), expected.detach())
    dy = images(*y.shape, seed=3)
    got, want = (torch.autograd.grad(t, list(p.values()), dy.to(t)) for t, p in ((y, half), (expected, wide)))
    for n, mine, exact in zip(half, got, want, strict=True):
        assert mine.dtype == half[n].dtype
        close(mine, exact, 1e-6 if n == "residual" and act == "none" else 2e-3)


def test_second_derivatives_of_a_gelu_inside_are_refused():
    plan, window, parts = problem("linear")
    y = fused(parts["x"], parts["values"], plan, window, lambda: Epilogue(residual=parts["residual"], act="gelu"))
    with pytest.raises(RuntimeError, match="expected first derivatives only.*unfuse"):
        torch.autograd.grad(y.square().sum(), parts["residual"], create_graph=True)


@pytest.mark.parametrize("name", ["tokens", "conv"])
@pytest.mark.parametrize(("act", "where"), [end for end in ENDS if end[0] != "gelu"])
def test_second_derivatives(name, act, where):
    plan, window, parts = problem(name)
    wide = {n: t.detach().double().requires_grad_() for n, t in parts.items()}
    end = Epilogue(parts["bias"], None, None if where == "none" else parts["residual"], act, where == "after")
    y = fused(parts["x"], parts["values"], plan, window, lambda: end)
    weight = to_dense(plan.arrange(wide["values"]), plan.kernel_index, plan.shape)
    exact = ended(product(wide["x"], weight, window), wide["bias"], wide["residual"], act, where)
    seconds = []
    for out, of in ((y, parts), (exact, wide)):
        inputs = [t for n, t in of.items() if n != "residual" or where != "none"]
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for mine, want in zip(*seconds, strict=True):
        close(mine, want, 1e-4)


@pytest.mark.parametrize("name", ["tokens", "conv"])
def test_a_residual_that_misfits_is_left_to_others(name):
    plan, window, parts = problem(name)
    rest = parts["residual"].detach()
    for bad in (rest[..., :1], rest[:1], rest.half(), rest.double(), rest.to("meta")):
        end = Epilogue(parts["bias"], None, bad)
        assert fused(parts["x"], parts["values"], plan, window, lambda end=end: end) is None


def test_a_scale_has_no_gradient_here():
    plan, window, parts = problem("linear")
    end = Epilogue(parts["bias"], torch.ones(40))
    assert fused(parts["x"], parts["values"], plan, window, lambda: end) is None
    with torch.no_grad():
        assert fused(parts["x"], parts["values"], plan, window, lambda: end) is not None


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("reader", ["linear", "conv"])
def test_the_reader_of_a_convolution_s_gelu_may_make_it_again(reader, memory):
    plan, window, parts = problem("conv")
    x = parts["x"].detach().contiguous(memory_format=memory).requires_grad_()
    reader = nn.Linear(4, 3) if reader == "linear" else nn.Conv2d(24, 3, 1)
    grads = []
    for again in (False, True):
        y = fused(x, parts["values"], plan, window, lambda: Epilogue(parts["bias"], act="gelu"))
        z = without_saving(reader, y, gelu=True) if again else reader(y)
        grads.append(torch.autograd.grad(z.square().sum(), [x, parts["values"], *reader.parameters()]))
    for got, want in zip(*grads, strict=True):
        close(got, want.double())


@pytest.mark.parametrize("name", ["linear", "tokens", "conv"])
def test_the_reader_of_a_gelu_in_a_kernel_may_make_it_again(name):
    plan, window, parts = problem(name)
    reader = nn.Conv2d(24, 3, 1) if name == "conv" else nn.Linear(40, 3)
    end = Epilogue(parts["bias"], None, parts["residual"], "gelu")
    grads, saved = [], []
    for again in (False, True):
        y = fused(parts["x"], parts["values"], plan, window, lambda: end)
        z = without_saving(reader, y, gelu=True) if again else reader(y)
        storage = weakref.ref(y.untyped_storage())
        del y
        gc.collect()
        saved.append(storage() is not None)
        grads.append(torch.autograd.grad(z.square().sum(), [*parts.values(), *reader.parameters()]))
    assert saved == [True, False]
    for got, want in zip(*grads, strict=True):
        close(got, want.double())
