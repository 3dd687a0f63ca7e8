"""conv2d_norm_act against a dense convolution, batch norm, addition and activation in float64, beside the ops apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.problems import Problem, build, convolution
from torch import Tensor

from spfde.kernels import clock, conv2d, dense
from spfde.kernels.conv2d_norm_act import conv2d_norm_act
from spfde.kernels.norm_act import ACTIVATIONS, norm_act, norm_act_ref
from spfde.kernels.scatter import to_dense
from spfde.sparse.index import index_from_positions
from spfde.sparse.kernel_index import Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import Plan, build_plan

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
THREE = Window((3, 3), (1, 1), (1, 1, 1, 1))


def fused(x, values, plan, conv_bias, *norm, **options):
    return conv2d_norm_act(x, values, plan, conv_bias, "native", *norm, **options)


def apart(x, values, plan, conv_bias, *norm, **options):
    return norm_act(conv2d(x, values, plan, conv_bias, "native"), *norm, **options)


def exact(x, values, plan, conv_bias, *norm, **options):
    weight = to_dense(plan.arrange(values), plan.kernel_index, plan.shape)
    return norm_act_ref(dense.convolution(x, weight, conv_bias, plan.window), *norm, **options)


@dataclass
class Case:
    """The op on concrete tensors; `run` answers [y, running_mean, running_var, gradients...]."""

    plan: Plan
    x: Tensor
    values: Tensor
    conv_bias: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    running: tuple[Tensor, Tensor] | tuple[None, None]
    dy: Tensor
    act: str
    training: bool

    def run(self, op=fused, dtype=torch.float32) -> list[Tensor]:
        parts = (self.x, self.values, self.conv_bias, self.weight, self.bias, self.residual)
        x, values, conv_bias, weight, bias, residual = leaves = [
            None if t is None else t.detach().to(dtype).requires_grad_() for t in parts
        ]
        running = [None if t is None else t.to(dtype, copy=True) for t in self.running]
        y = op(
            x, values, self.plan, conv_bias, *running, weight, bias,
            residual=residual, act=self.act, training=self.training, momentum=0.3,
        )  # fmt: skip
        given = [t for t in leaves if t is not None]
        return [y.detach(), *(t for t in running if t is not None), *torch.autograd.grad(y, given, self.dy.to(dtype))]


def finish(problem: Problem, seed: int, added: bool, affine: bool, act: str, training: bool) -> Case:
    generator = torch.Generator().manual_seed(seed)
    plan, shape = problem.plan, problem.dy.shape
    residual, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias, mean, var = torch.rand(4, plan.rows, generator=generator).unbind()
    case = Case(
        plan, problem.x, problem.values, problem.bias, 2 * weight - 1 if affine else None, bias if affine else None,
        residual if added else None, (mean, var + 0.1), dy, "none", training,
    )  # fmt: skip
    # No gradient where rounding may put a value on the other side of a kink of the activation.
    z = case.run(exact, torch.float64)[0]
    return replace(case, dy=torch.where((z.abs() > 1e-3) & ((z - 6).abs() > 1e-3), dy, 0.0), act=act)


@st.composite
def cases(draw) -> Case:
    batch, seed = draw(st.sampled_from([2, 7, 16, 17, 33])), draw(st.integers(0, 2**16))
    problem = draw(convolution(channels=draw(st.sampled_from([5, 24])), batches=(batch,)))
    problem.x = problem.x * 3 + draw(st.sampled_from([0.0, 5.0]))
    flags = [draw(st.booleans()) for _ in range(3)]
    return finish(problem, seed, *flags[:2], draw(st.sampled_from(list(ACTIVATIONS))), flags[2])


def made(
    shape=(24, 20), size=(14, 14), batch=33, density=0.3, seed=0, window=THREE, layout="contiguous", act="relu",
    added=True, training=True,
) -> Case:  # fmt: skip
    plan, values = build((*shape, *window.kernel), window, density, 0, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    x = torch.randn(batch, shape[1] * window.groups, *size, generator=generator)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    dy = torch.empty(batch, shape[0], *window.output_size(*size))
    return finish(Problem(plan, window, x, values, None, dy), seed, added, True, act, training)


def assert_as_close_as_apart(case: Case) -> None:
    """The fused op may be as far from float64 as the two ops are, but for a few roundings of what is summed."""
    wanted, scale = case.run(exact, torch.float64), float(case.dy.norm())
    for got, theirs, right in zip(case.run(), case.run(apart), wanted, strict=True):
        assert got.shape == right.shape
        error, limit = (float((t.double() - right).norm()) for t in (got, theirs))
        assert error <= 2 * limit + 2e-6 * (float(right.norm()) + scale)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_output_statistics_and_gradients(case):
    if fused(case.x, case.values, case.plan, case.conv_bias, *case.running, training=True) is None:
        assert case.plan.window.linear or case.dy.numel() == case.plan.rows
        return
    assert_as_close_as_apart(case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size", "batch"), [
    ((16, 16), (28, 28), 32), ((64, 64), (7, 7), 32), ((24, 20), (5, 3), 33), ((128, 100), (8, 8), 17),
    ((8, 8), (9, 9), 1), ((16, 16), (2, 2), 48),
])  # fmt: skip
def test_in_lanes_joined_and_wide(shape, size, batch, layout):
    assert_as_close_as_apart(made(shape, size, batch, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_end(act, added, layout):
    assert_as_close_as_apart(made(act=act, added=added, layout=layout))


def identity(channels: int) -> tuple[Plan, Tensor]:
    """A 3x3 convolution that returns its input: a weight in the middle for each channel."""
    positions = torch.arange(channels) * (9 * channels + 9) + 4
    shape, grid = (channels, channels, 3, 3), Pattern.parse("unstructured").grid((channels, channels, 3, 3), 1)
    plan = build_plan(index_from_positions(positions, *grid.shape, channels), shape, THREE, grid)
    return plan, torch.ones(channels, 1, 1, requires_grad=True)


DX, DVALUES = 3, 4  # where `Case.run` has them
OUTLIERS = {
    "a border first": (0, slice(None), 0), "an image first": (0,), "a value first": (0, slice(None), 0, 0),
    "the middle": (slice(None), slice(None), 7, 7), "the last image": (-1,), "half of the batch": (slice(0, 16),),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", OUTLIERS.values(), ids=OUTLIERS)
def test_whatever_the_guess_is_taken_from_is_as_close_to_float64_as_torch(place, layout):
    generator = torch.Generator().manual_seed(0)
    normal, dy = torch.randn(2, 33, 4, 14, 14, generator=generator)
    plan, values = identity(4)
    vectors = (torch.ones(4), torch.zeros(4), None, (torch.zeros(4), torch.zeros(4)), dy, "none", True)
    for value, x in ((0.0, 1e3 + normal), (1e4, normal), (-3e3, torch.full_like(normal, 1e3))):
        x[place] = value
        case = Case(plan, x.contiguous(memory_format=LAYOUTS[layout]), values, None, *vectors)
        torchs = replace(case, x=x).run(
            lambda x, *rest, **options: norm_act_ref(conv2d(x, *rest[:3]), *rest[3:], **options)
        )
        rights = case.run(exact, torch.float64)
        sizes = [right.abs().max() for right in rights]
        sizes[DVALUES] = (rights[DX] * x).abs().sum((0, 2, 3)).max()  # 0 where x has two values; its terms are not
        for got, theirs, right, size in zip(case.run(), torchs, rights, sizes, strict=True):
            error, limit = ((t - right).abs().max() / size for t in (got, theirs))
            assert error <= 6 * max(limit, 1e-7)


def test_a_constant_channel_has_no_variance():
    plan, values = identity(5)
    x = torch.full((33, 5, 6, 6), 0.1)
    assert fused(x, values.detach(), plan, None, None, None, training=True).count_nonzero() == 0


def test_rows_without_weights_are_constant():
    case = made(density=0.0, added=False)
    y, *_, dx, dvalues, dweight, dbias = case.run()
    torch.testing.assert_close(y, case.bias.relu().view(-1, 1, 1).expand_as(y))
    assert dx.count_nonzero() == dvalues.numel() == dweight.count_nonzero() == 0
    assert dbias.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [2, 40, 64])
def test_the_bits_do_not_depend_on_the_number_of_threads(batch, layout):
    """Those of weight gradients do, as everywhere."""
    case = made(batch=batch, layout=layout)
    one = case.run()
    torch.set_num_threads(2)
    try:
        two = case.run()
    finally:
        torch.set_num_threads(1)
    sums = 4  # y, running mean and variance, gradient of x; then that of the values
    assert all(map(torch.equal, one[:sums], two[:sums])) and all(map(torch.equal, one[sums + 1 :], two[sums + 1 :]))
    torch.testing.assert_close(one[sums], two[sums], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("channels", [24, 100])
def test_with_given_statistics_it_is_the_ops_apart_to_the_bit(channels, added):
    case = made((channels, 20), training=False, added=added)
    assert all(map(torch.equal, case.run(), case.run(apart)))


def test_nans_and_infinities_pass():
    plan, values = identity(3)
    x = torch.randn(33, 3, 6, 6)
    x[0, 0, 0, 0], x[20, 1, 3, 3] = torch.nan, torch.inf
    y = fused(x, values.detach(), plan, None, None, None, act="relu", training=True)
    assert y[:, :2].isnan().all() and y[:, 2].isfinite().all()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_second_derivatives(added, training, act):
    case, found = made((3, 2), (4, 4), 17, 0.7, act=act, added=added, training=training), []
    for op, dtype in ((fused, torch.float32), (exact, torch.float64)):
        parts = [t for t in (case.x, case.values, case.weight, case.bias, case.residual) if t is not None]
        x, values, weight, bias, *residual = inputs = [t.detach().to(dtype).requires_grad_() for t in parts]
        y = op(
            x, values, case.plan, None, *(t.to(dtype) for t in case.running), weight, bias,
            residual=residual[0] if residual else None, act=act, training=training, momentum=0.0,
        )  # fmt: skip
        grads = torch.autograd.grad((y * case.dy.to(dtype)).pow(3).sum(), inputs, create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)])
    for mine, right in zip(*found, strict=True):
        atol = 1e-4 * float(right.detach().abs().max())
        torch.testing.assert_close(mine.double(), right, rtol=1e-3, atol=atol)


def test_batched_gradients():
    case = made(batch=17)
    inputs = [t.detach().requires_grad_() for t in (case.x, case.values, case.weight, case.residual)]
    x, values, weight, residual = inputs
    y = fused(x, values, case.plan, None, None, None, weight, residual=residual, act="relu", training=True)
    dys = torch.stack([case.dy, 2 * case.dy])
    together = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    for both, one in zip(together, torch.autograd.grad(y, inputs, case.dy), strict=True):
        torch.testing.assert_close(both, torch.stack([one, 2 * one]), rtol=1e-4, atol=1e-4)


def test_only_the_gradients_asked_for():
    case = made()
    names = ("x", "weight", "bias", "residual")
    everything = dict(zip(("x", "values", "weight", "bias", "residual"), case.run()[3:], strict=True))
    for asked in names:
        parts = {name: getattr(case, name).detach().requires_grad_(name == asked) for name in names}
        values = case.values.detach().requires_grad_()
        y = fused(
            parts.pop("x") if asked != "x" else (x := parts.pop("x")), values, case.plan, None,
            *(t.clone() for t in case.running), **parts, act="relu", training=True, momentum=0.3,
        )  # fmt: skip
        leaf = x if asked == "x" else parts[asked]
        torch.testing.assert_close(*(torch.autograd.grad(y, leaf, case.dy)[0], everything[asked]))


def test_saves_what_the_two_ops_save():
    case = made()

    def saved(op):
        sizes = []
        x, residual = case.x.detach().requires_grad_(), case.residual.detach()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            op(x, case.values, case.plan, None, None, None, residual=residual, act="relu", training=True)
        return sorted(sizes)

    assert saved(fused) == saved(apart)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_recompute_a_chain_gives_the_same_bits(layout):
    case, results = made((20, 20), layout=layout), []
    for recompute in (False, True):
        x, values, residual = leaves = [t.detach().requires_grad_() for t in (case.x, case.values, case.residual)]
        options = dict(act="relu", training=True, recompute=recompute)
        y = fused(x, values, case.plan, None, None, None, residual=residual, **options)
        y = fused(x, values, case.plan, None, None, None, residual=y, **options)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_backward_notices_what_has_changed():
    case = made()

    def made_y():
        return fused(
            case.x, case.values, case.plan, None, *case.running, residual=case.residual, act="relu", training=True
        )

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made_y().mul_(2).sum().backward()
    y = fused(case.x, case.values, case.plan, None, *case.running, act="relu")
    made_y()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_kernel_time_and_the_profiler_know_it():
    case = made()
    with clock.measure() as seconds, torch.autograd.profiler.profile() as profile:
        case.run()
    assert seconds.seconds > 0
    names = {event.name for event in profile.function_events}
    assert {"spfde::conv2d_norm_act native", "spfde::conv2d_norm_act gradients native"} <= names


APART = {
    "evaluation without gradients": dict(training=False),
    "half precision": dict(x=torch.ones(2, 20, 14, 14, dtype=torch.bfloat16)),
    "no batch": dict(x=torch.ones(20, 14, 14)),
    "an empty batch": dict(x=torch.ones(0, 20, 14, 14)),
    "channels that misfit": dict(x=torch.ones(2, 21, 14, 14)),
    "an image too small": dict(x=torch.ones(2, 20, 0, 14)),
    "a residual that misfits": dict(residual=torch.ones(33, 24, 14, 1)),
    "a wide residual": dict(residual=torch.ones(33, 24, 14, 14).double()),
    "statistics that misfit": dict(running_mean=torch.ones(23)),
    "one statistic": dict(running_var=None),
    "eps 0": dict(eps=0.0),
    "a weight that misfits": dict(weight=torch.ones(1)),
    "torch's kernel": dict(kernel="dense"),
}


@pytest.mark.parametrize("change", APART.values(), ids=APART)
def test_where_it_does_not_run_nothing_moves(change):
    case = made()
    mean, var = case.running
    call = dict(
        x=case.x.detach(), values=case.values.detach(), plan=case.plan, conv_bias=None, kernel="native",
        running_mean=mean.clone(), running_var=var.clone(), training=True,
    ) | change  # fmt: skip
    assert conv2d_norm_act(**call) is None
    for name, before in (("running_mean", mean), ("running_var", var)):
        assert name in change or torch.equal(call[name], before)


def test_other_patterns_run_apart():
    x = torch.randn(17, 8, 6, 6)
    for pattern, kernel, taps in (
        ("block:4x1", "native", (3, 3)),
        ("channel", "native", (3, 3)),
        ("unstructured", "native", (1, 1)),
    ):
        plan, values = build((8, 8, *taps), Window(taps), 0.5, 0, 0, pattern)
        assert conv2d_norm_act(x, values, plan, None, kernel, None, None, training=True) is None
