"""norm_act against torch's batch_norm, addition and activation in float64, in both memory formats."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from spfde.kernels.norm_act import ACTIVATIONS, norm_act, norm_act_ref

CHANNELS_LAST = {"memory_format": torch.channels_last}
LAYOUTS = ["contiguous", "channels_last", "view"]
SIZES = [(1, 1), (1, 3), (2, 2), (4, 4), (3, 5), (7, 7), (8, 8), (5, 33), (40, 70)]


@dataclass
class Problem:
    """norm_act on concrete tensors; `run` answers [y, running_mean, running_var, gradients...]."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    running: tuple[Tensor, Tensor] | tuple[None, None]
    dy: Tensor
    act: str
    training: bool

    def run(self, op=norm_act, dtype=torch.float32) -> list[Tensor]:
        leaves = [None if t is None else t.detach().to(dtype) for t in (self.x, self.residual, self.weight, self.bias)]
        running = [None if t is None else t.to(dtype, copy=True) for t in self.running]
        given = [t.requires_grad_() for t in leaves if t is not None]
        x, residual, weight, bias = leaves
        y = op(x, *running, weight, bias, residual=residual, act=self.act, training=self.training, momentum=0.3)
        return [y.detach(), *(t for t in running if t is not None), *torch.autograd.grad(y, given, self.dy.to(dtype))]


def images(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    if layout == "view":  # gaps between rows, columns in the wrong order
        return torch.randn(*shape[:2], shape[3] + 1, shape[2] + 2, generator=generator).mT[:, :, 1:-1, 1:]
    x = torch.randn(shape, generator=generator)
    return x.contiguous(**CHANNELS_LAST) if layout == "channels_last" else x


@st.composite
def problems(draw) -> Problem:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    size = draw(st.sampled_from(SIZES))
    batch = draw(st.integers(-(-4 // (size[0] * size[1])), 9))  # four values or more: of two, the gradient is noise
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 13, 16, 24, 33, 64, 100]))
    shape = (batch, channels, *size)
    vector = lambda low, scale=1.0: scale * (torch.rand(channels, generator=generator) + low)  # noqa: E731
    layout, training = draw(st.sampled_from(LAYOUTS)), draw(st.booleans())
    x = images(shape, layout, generator) * vector(0.1).view(-1, 1, 1) + vector(-0.5, 20.0).view(-1, 1, 1)
    problem = Problem(
        x=x.contiguous(**CHANNELS_LAST) if layout == "channels_last" else x,
        residual=images(shape, layout, generator) if draw(st.booleans()) else None,
        weight=vector(-0.5, 4.0) if draw(st.booleans()) else None,
        bias=vector(-0.5, 4.0) if draw(st.booleans()) else None,
        running=(vector(-0.5, 20.0), vector(0.1)) if not training or draw(st.booleans()) else (None, None),
        dy=images(shape, draw(st.sampled_from(LAYOUTS)), generator),
        act="none",
        training=training,
    )
    # No gradient where rounding may put a value on the other side of a kink of the activation.
    z = problem.run(norm_act_ref, torch.float64)[0]
    problem.dy = torch.where((z.abs() > 1e-3) & ((z - 6).abs() > 1e-3), problem.dy, 0.0)
    problem.act = draw(st.sampled_from(list(ACTIVATIONS)))
    return problem


@given(problems())
def test_output_statistics_and_gradients(problem):
    exact = problem.run(norm_act_ref, torch.float64)
    narrowest = problem.x.transpose(0, 1).flatten(1).std(1).min().clamp(max=1)
    scale = (problem.dy.norm() + problem.x.numel() ** 0.5) / narrowest  # rounding of x, seen through 1 / std
    for got, wanted in zip(problem.run(), exact, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6 * scale


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (64, 64, 8, 8), (3, 3, 112, 112)])
def test_as_close_to_float64_as_torch(shape, act, layout):
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = (images(shape, layout, generator) for _ in range(3))
    weight, bias, mean, var = torch.rand(4, shape[1], generator=generator).unbind()
    problem = Problem(3 * x + 5, residual, weight, bias, (mean, var), dy, act, training=True)
    exact = problem.run(norm_act_ref, torch.float64)
    for got, torchs, wanted in zip(problem.run(), problem.run(norm_act_ref), exact, strict=True):
        assert (got - wanted).norm() <= 2 * (torchs - wanted).norm() + 1e-6 * wanted.norm()


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_a_small_variance_on_a_large_mean_and_an_outlier(layout):
    generator = torch.Generator().manual_seed(0)
    x = images((16, 9, 12, 12), layout, generator)
    x[:, ::2] = 1000 + x[:, ::2]
    x[0, 1, 0, 0] = 1e4
    problem = Problem(x, None, None, None, (torch.zeros(9), torch.zeros(9)), torch.ones_like(x), "none", True)
    for got, wanted in zip(problem.run()[:3], problem.run(norm_act_ref, torch.float64), strict=False):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-4)


OUTLIERS = {
    "a border first": (0, slice(None), 0), "an image first": (0,), "a value first": (0, slice(None), 0, 0),
    "the last value": (-1, slice(None), -1, -1), "half of the batch": (slice(0, 16),),
}  # fmt: skip


@pytest.mark.parametrize("size", [(16, 16), (7, 7)])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("place", OUTLIERS.values(), ids=OUTLIERS)
def test_whatever_comes_first_is_as_close_to_float64_as_torch(place, layout, size):
    generator = torch.Generator().manual_seed(0)
    normal, dy = torch.randn(2, 32, 4, *size, generator=generator)
    for value, x in ((0.0, 1e3 + normal), (1e4, normal), (-3e3, torch.full_like(normal, 1e3))):
        x[place] = value
        x = x.contiguous(**CHANNELS_LAST) if layout == "channels_last" else x
        running = (torch.zeros(4), torch.zeros(4))
        problem = Problem(x, None, torch.ones(4), torch.zeros(4), running, dy, "none", training=True)
        contiguous = Problem(x.contiguous(), None, torch.ones(4), torch.zeros(4), running, dy, "none", training=True)
        exact = problem.run(norm_act_ref, torch.float64)
        for got, torchs, wanted in zip(problem.run(), contiguous.run(norm_act_ref), exact, strict=True):
            error, theirs = ((t - wanted).abs().max() / wanted.abs().max() for t in (got, torchs))
            assert error <= 6 * max(theirs, 1e-7)


def test_a_constant_channel_has_no_variance():
    for layout in LAYOUTS[:2]:
        x = torch.full((4, 3, 5, 5), 0.1)
        x = x.contiguous(**CHANNELS_LAST) if layout == "channels_last" else x
        assert norm_act(x, None, None, training=True).count_nonzero() == 0


@given(problems())
def test_results_keep_the_memory_format_of_x(problem):
    y, *_ = problem.run()
    dx = problem.run()[1 + 2 * (problem.running[0] is not None)]
    for t in (y, dx):
        assert t.is_contiguous() or t.is_contiguous(**CHANNELS_LAST)
        if problem.x.is_contiguous(**CHANNELS_LAST):
            assert t.is_contiguous(**CHANNELS_LAST)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_the_bits_do_not_depend_on_the_number_of_threads(layout):
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = (images((16, 24, 14, 14), layout, generator) for _ in range(3))
    problem = Problem(x, residual, torch.rand(24), torch.rand(24), (None, None), dy, "relu", True)
    one = problem.run()
    torch.set_num_threads(2)
    try:
        assert all(map(torch.equal, one, problem.run()))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 9), (2, 5, 3, 4, 2)])
def test_other_numbers_of_dimensions(shape):
    x, dy = torch.randn(shape), torch.randn(shape)
    problem = Problem(x, None, torch.rand(5), torch.rand(5), (torch.zeros(5), torch.ones(5)), dy, "relu", True)
    for got, wanted in zip(problem.run(), problem.run(norm_act_ref, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_nans_and_infinities_pass():
    x = torch.randn(2, 3, 4, 4)
    x[0, 0, 0, 0], x[1, 1, 0, 0] = torch.nan, torch.inf
    got, wanted = (op(x, torch.zeros(3), torch.ones(3), act="relu6") for op in (norm_act, norm_act_ref))
    torch.testing.assert_close(got, wanted, equal_nan=True)
    assert norm_act(x, None, None, act="relu", training=True)[:, 0].isnan().all()


def test_only_the_gradients_asked_for():
    x, residual, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(3)
    for asked in (x, residual, weight):
        y = norm_act(x, None, None, weight, residual=residual, act="relu", training=True)
        assert not y.requires_grad
        asked.requires_grad_()
        norm_act(x, None, None, weight, residual=residual, act="relu", training=True).sum().backward()
        assert asked.grad is not None
        assert [t.grad is None for t in (x, residual, weight) if t is not asked] == [True, True]
        asked.requires_grad_(False).grad = None


def test_saves_x_and_no_second_image_unless_a_residual_hides_it():
    def saved(residual, act):
        sizes = []
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            norm_act(x, None, None, residual=residual, act=act, training=True)
        return sizes.count(x.numel())

    assert saved(None, "relu") == 1
    assert saved(torch.randn(2, 3, 8, 8), "none") == 1
    assert saved(torch.randn(2, 3, 8, 8), "relu") == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_with_recompute_a_chain_of_residuals_gives_the_same_bits(act, layout):
    generator = torch.Generator().manual_seed(0)
    x, *more = (images((3, 5, 4, 6), layout, generator) for _ in range(5))
    results = []
    for recompute in (False, True):
        leaves = [t.detach().requires_grad_() for t in (x, *more)]
        y = leaves[0]
        for leaf in leaves[1:]:
            y = norm_act(leaf, None, None, residual=y, act=act, training=True, recompute=recompute)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [True, False])
def test_opcheck(layout, added, training, affine):
    generator = torch.Generator().manual_seed(0)
    x, residual = (images((3, 5, 4, 6), layout, generator).detach().requires_grad_() for _ in range(2))
    weight, bias, mean, var = torch.rand(4, 5, generator=generator).unbind()
    vectors = (weight.clone().requires_grad_(), bias.clone().requires_grad_()) if affine else (None, None)
    statistics = (None, None) if training else (mean, var)
    args = (x, residual if added else None, *vectors, *statistics, 1e-5, "relu")
    opcheck(torch.ops.spfde.norm_act.default, args)


@given(problems())
def test_the_registered_op_gives_the_same(problem):
    eager = problem.run()
    with FlopCounterMode(display=False):  # a dispatch mode takes the registered op
        registered = problem.run()
    for got, wanted in zip(registered, eager, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("registered", [True, False])
def test_second_derivatives(registered, added, training, act):
    parts = [torch.randn(3, 2, 4, 4).contiguous(memory_format=torch.channels_last), torch.randn(3, 2, 4, 4)]
    parts += [torch.randn(2), torch.randn(2)]
    mean, var, found = torch.randn(2), torch.rand(2) + 1, []
    for dtype in (torch.float32, torch.float64):
        x, residual, weight, bias = inputs = [p.to(dtype).requires_grad_() for p in parts]
        with FlopCounterMode(display=False) if registered else nullcontext():
            y = norm_act(
                x, mean.to(dtype), var.to(dtype), weight, bias,
                residual=residual if added else None, act=act, training=training, momentum=0.0,
            )  # fmt: skip
        inputs = inputs if added else [x, weight, bias]
        grads = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_float64_differentiates_to_any_order():
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    run = lambda t: norm_act(t, None, None, act="none", training=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_goes_to_torch(dtype):
    x, running = torch.randn(4, 3, 5, 5).to(dtype), (torch.zeros(3), torch.ones(3))
    y = norm_act(x, *running, torch.ones(3), torch.zeros(3), act="relu", training=True)
    exact = norm_act_ref(x.float(), None, None, act="relu", training=True)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2)
    assert running[0].abs().max() > 0


def test_an_empty_batch_is_torchs():
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    y = norm_act(x, torch.zeros(3), torch.ones(3), act="relu")
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


def test_backward_notices_that_its_statistics_have_moved():
    x, mean, var = torch.randn(4, 3, 5, 5, requires_grad=True), torch.zeros(3), torch.ones(3)
    y = norm_act(x, mean, var, act="relu")
    norm_act(x.detach(), mean, var, act="relu", training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


WRONG = [
    (dict(act="swish"), "expected act to be one of .*none, relu, relu6, .*, got 'swish', try"),
    (dict(x=torch.ones(3)), r"expected x of shape \[batch, channels, ...\], got \[3\]"),
    (dict(weight=torch.ones(4)), r"expected weight of shape \[3\], got \[4\]"),
    (dict(bias=torch.ones(3, 1)), r"expected bias of shape \[3\], got \[3, 1\]"),
    (dict(running_mean=torch.ones(2)), r"expected running_mean of shape \[3\], got \[2\]"),
    (dict(running_var=torch.ones(2)), r"expected running_var of shape \[3\], got \[2\]"),
    (dict(running_mean=None), "expected running_mean and running_var both or neither"),
    (dict(running_mean=None, running_var=None, training=False), "expected running_mean and running_var, got None, try"),
    (dict(residual=torch.ones(2, 3, 4, 1)), r"expected residual of shape \[2, 3, 4, 4\] like x, got \[2, 3, 4, 1\]"),
    (dict(eps=0.0), "expected eps > 0 in training and >= 0 in evaluation, got 0.0, try 1e-5"),
    (dict(eps=-1e-5), "expected eps > 0 in training"),
    (dict(eps=-1e-5, training=False), "and >= 0 in evaluation, got -1e-05"),
    (dict(x=torch.ones(1, 3, 1, 1)), "Expected more than 1 value per channel when training, got input size"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_told_before_anything_moves(change, message):
    mean, var = torch.zeros(3), torch.ones(3)
    call = dict(x=torch.randn(2, 3, 4, 4), running_mean=mean, running_var=var, training=True) | change
    with pytest.raises(ValueError, match=message):
        norm_act(**call)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))
