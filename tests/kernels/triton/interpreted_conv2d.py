"""Triton's conv2d in its interpreter: forward and gradients against float64 dense torch. Run by test_interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.problems import build
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spfde.kernels import conv2d
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.masked import to_dense
from spfde.kernels.tiled import TiledUnits, tiles_of
from spfde.kernels.triton import config
from spfde.kernels.triton.conv2d_plan import with_transpose
from spfde.pattern import Plan, Window
from spfde.structure import Pattern

ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the norm of the terms, all positive
BLOCKS = ("block:16x16", "block:16x16", "block:32x16", "block:16x32", "block:16x128")
THREE = Window((3, 3), (1, 1), (1, 1, 1, 1))


@dataclass(frozen=True)
class Case:
    """A convolution on concrete tensors."""

    plan: Plan
    window: Window
    x: Tensor
    values: Tensor
    bias: Tensor
    dy: Tensor
    relu: bool = False

    def got(self) -> list[Tensor]:
        from spfde.kernels.triton import conv2d as kernels

        shape, block, units = self.plan.shape, self.values.shape[1:], self.plan.units
        if self.window.linear:
            first, second = tiles_of(self.plan)
            units = TiledUnits(*units, *first, *second)
        act = "relu" if self.relu else "none"
        return [
            kernels.forward(self.x, self.values, Epilogue(self.bias, act=act), units, shape, self.window),
            kernels.input_grad(self.dy, self.values, units, self.x.shape[2:], shape, self.window),
            *kernels.weight_grad(self.dy, self.x, units, block, shape, self.window, True),
        ]

    def exact(self, positive: bool = False) -> list[Tensor]:
        """The same in float64, with the terms' absolute values if `positive`."""
        parts = (self.x, self.values, self.bias, self.dy)
        x, values, bias, dy = (t.double().abs() if positive else t.double() for t in parts)
        x, values, bias = (t.contiguous().requires_grad_() for t in (x, values, bias))
        top, bottom, left, right = self.window.padding
        weight = to_dense(values, self.plan.units, self.plan.shape)
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, self.window.stride, 0, self.window.dilation)
        grads = torch.autograd.grad(y, (x, values, bias), dy)
        return [y.detach().relu() if self.relu else y.detach(), *grads]


def check(case: Case) -> None:
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    for name, mine, exact, scale in zip(names, case.got(), case.exact(), case.exact(positive=True), strict=True):
        assert mine.shape == exact.shape and mine.dtype == case.x.dtype, name
        assert float((mine.double() - exact).norm()) <= ROUNDING[case.x.dtype] * float(scale.norm()), name


def case(
    shape,
    window,
    pattern,
    density,
    batch,
    size,
    dtype=torch.float32,
    memory="channels_last",
    dead=0,
    relu=False,
    seed=0,
) -> Case:
    """Random tensors for a weight of dense `shape`."""
    plan, values = build(shape, window, density, dead, seed, pattern)
    values = plan.arrange(values.detach()).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, shape[1], *size, generator=generator).to(dtype)
    if memory == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if memory == "view":  # neither format
        x = torch.randn(batch, shape[1], size[1] + 2, size[0] + 1, generator=generator).to(dtype)
        x = x.transpose(2, 3)[:, :, 1:, 2:]
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    dy = torch.randn(batch, shape[0], *window.output_size(*size), generator=generator).to(dtype)
    return Case(plan, window, x, values, bias, dy, relu)


@st.composite
def cases(draw) -> Case:
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation = pair(1, 3), pair(1, 3), pair(1, 2)
    window = Window(kernel, stride, (*pair(0, 2), *pair(0, 2)), dilation)
    least = [max(1, d * (k - 1) + 1 - a - b) for d, k, a, b in zip(
        dilation, kernel, window.padding[::2], window.padding[1::2], strict=True)]  # fmt: skip
    size = tuple(draw(st.integers(n, n + 4)) for n in least)
    pattern = draw(st.sampled_from(BLOCKS))
    outputs, channels = (max(1, n * draw(st.integers(1, 2)) + draw(st.sampled_from([-1, 0, 1]))) for n in
                         Pattern.parse(pattern).numbers)  # fmt: skip
    return case(
        (outputs, channels, *kernel), window, pattern, draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        draw(st.sampled_from([0, 1, 3])), size, draw(st.sampled_from([torch.float32, torch.float16])),
        draw(st.sampled_from(["channels_last", "contiguous", "view"])), draw(st.sampled_from([0, 3])),
        draw(st.booleans()), draw(st.integers(0, 2**16)),
    )  # fmt: skip


@given(drawn=cases())
@settings(max_examples=15)
def test_any_convolution(drawn):
    check(drawn)


@pytest.mark.full
@given(drawn=cases())
@settings(max_examples=150)
def test_any_convolution_at_length(drawn):
    check(drawn)


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_common_convolution(dtype, stride):
    check(case((32, 32, 3, 3), THREE._replace(stride=(stride, stride)), "block:16x16", 0.3, 2, (9, 10), dtype))


def test_rows_and_columns_of_blocks_that_store_nothing():
    some = case((48, 48, 3, 3), THREE, "block:16x16", 0.02, 1, (5, 5))
    units = with_transpose(some.plan.units, (16, 16), some.plan.shape, THREE)
    assert (units.row_ptr.diff() == 0).any() and (units.t_row_ptr.diff() == 0).any()
    check(some)


def test_pixels_are_cut_into_parts_that_are_added_in_order(monkeypatch):
    some = case((16, 16, 2, 2), Window((2, 2), (1, 1)), "block:16x16", 0.5, 2, (11, 13))
    whole = some.got()[2]
    monkeypatch.setattr(config, "parts", lambda *_: 3)
    check(some)
    first, second = some.got()[2:], some.got()[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], whole)  # the sum was made in another order


def test_slots_that_store_nothing_get_no_gradient():
    some = case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4), dead=3)
    assert not some.got()[2][-3:].any()


@pytest.mark.parametrize("memory", ["channels_last", "contiguous", "view"])
@pytest.mark.parametrize("window", [THREE, Window()], ids=["3x3", "1x1"])
def test_a_layer_computes_what_the_masked_product_does_in_the_memory_format_of_its_input(window, memory):
    plan, values = build((33, 40, *window.kernel), window, 0.4, 2, 0, "block:16x16")
    some = case((33, 40, *window.kernel), window, "block:16x16", 0.4, 2, (5, 4), memory=memory)
    results = []
    for kernel in ("dense", "triton"):
        inputs = [some.x.detach().requires_grad_(), values, some.bias.detach().requires_grad_()]
        y = conv2d(inputs[0], values, plan, window, inputs[2], kernel)
        results.append([y, *torch.autograd.grad(y, inputs, some.dy)])
    for dense, triton in zip(*results, strict=True):
        torch.testing.assert_close(triton, dense, atol=1e-4, rtol=1e-4)
    last = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    assert results[1][0].is_contiguous(memory_format=last)


def test_a_registered_op_needs_no_lists_made_before():
    plan, values = build((32, 16, 3, 3), THREE, 0.4, 0, 0, "block:16x16")
    some = case((32, 16, 3, 3), THREE, "block:16x16", 0.4, 1, (4, 4))
    x = some.x.detach().requires_grad_()
    results = []
    for kernel in ("dense", "triton"):
        with FlopCounterMode(display=False):  # any dispatch mode
            y = conv2d(x, values, plan, THREE, None, kernel)
            results.append([y, *torch.autograd.grad(y, (x, values), some.dy)])
    for dense, triton in zip(*results, strict=True):
        torch.testing.assert_close(triton, dense, atol=1e-4, rtol=1e-4)


def launched(monkeypatch) -> list[str]:
    """Names of the kernels that are launched from now on."""
    from spfde.kernels.triton import conv2d as kernels
    from spfde.kernels.triton import sddmm, spmm

    names: list[str] = []
    for module in (kernels, sddmm, spmm):
        run = module.launch

        def spy(kernel, *args, run=run, **options):
            names.append(kernel.fn.__name__)
            run(kernel, *args, **options)

        monkeypatch.setattr(module, "launch", spy)
    return names


@pytest.mark.parametrize(
    "needs_x, trained, expected",
    [
        (True, True, ["multiply", "multiply", "reduce"]),
        (True, False, ["multiply", "multiply"]),
        (False, True, ["multiply", "reduce"]),
        (False, False, ["multiply"]),
    ],
)
def test_what_is_frozen_is_not_launched_and_nothing_is_kept_for_it(monkeypatch, needs_x, trained, expected):
    names = launched(monkeypatch)
    plan, values = build((16, 16, 3, 3), THREE, 0.5, 0, 0, "block:16x16")
    values.requires_grad_(trained)
    x = torch.randn(1, 16, 4, 4).requires_grad_(needs_x)
    bias = torch.zeros(16, requires_grad=True)  # so that there is always something to differentiate
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = conv2d(x, values, plan, THREE, bias, "triton")
    y.sum().backward()
    assert names == expected
    assert (x.shape in kept) == trained
    assert (x.grad is None, values.grad is None) == (not needs_x, not trained)


def pointwise() -> None:
    """One step of a pointwise convolution, against the masked product."""
    plan, values = build((32, 16, 1, 1), Window(), 0.7, 0, 0, "block:16x16")
    x = torch.randn(1, 16, 3, 3, requires_grad=True)
    grads = [torch.autograd.grad(conv2d(x, values, plan, Window(), None, kernel).square().sum(), (x, values))
             for kernel in ("dense", "triton")]  # fmt: skip
    for dense, triton in zip(*grads, strict=True):
        torch.testing.assert_close(triton, dense, atol=1e-4, rtol=1e-4)


def test_a_pointwise_convolution_runs_as_a_linear_layer_where_torch_gives_both_one_precision(monkeypatch):
    names = launched(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pointwise()
    assert {"spmm_kernel", "sddmm_kernel"} <= set(names) and not {"multiply", "reduce"} & set(names)
    names.clear()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pointwise()
    assert names == ["multiply", "multiply", "reduce"]


@pytest.mark.parametrize(("allowed", "expected"), [(False, "ieee"), (True, "tf32")])
def test_float32_is_rounded_where_torch_allows_it_to_convolutions(monkeypatch, allowed, expected):
    from spfde.kernels.triton import conv2d as kernels

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    given = []
    monkeypatch.setattr(kernels, "launch", lambda *_, **options: given.append(options["PRECISION"]))
    case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4)).got()
    case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4), torch.float16).got()
    assert given == [expected] * 3 + ["ieee"] * 3


def test_lists_of_the_transpose_hold_every_block_once_by_what_it_reads():
    window = Window((3, 2), (2, 1), (1, 1, 0, 1), (1, 2))
    plan = build((48, 32, 3, 2), window, 0.4, 3, 1, "block:16x16")[0]
    units = with_transpose(plan.units, (16, 16), plan.shape, window)
    order = units.t_perm[: plan.nnz].long()
    assert order.sort().values.tolist() == list(range(plan.nnz))
    t_row = torch.repeat_interleave(torch.arange(2 * 2), units.t_row_ptr.diff())  # channel blocks x residues
    row, column = plan.positions[order] // 12, plan.positions[order] % 12
    tap = column % 6
    assert t_row.tolist() == (column // 6 * 2 + tap // 2 % 2).tolist()
    assert units.t_col[: plan.nnz].tolist() == (row * 6 + tap).tolist()


def test_groups_are_refused_with_the_reason():
    window = THREE._replace(groups=2)
    plan, values = build((32, 16, 3, 3), window, 0.5, 0, 0, "block:16x16")
    with pytest.raises(ValueError, match="got: no sparse kernel for groups there, try kernel = 'auto'"):
        conv2d(torch.randn(1, 32, 4, 4), values, plan, window, None, "triton")
