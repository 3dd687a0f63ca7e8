"""Triton's conv2d in its interpreter: forward and gradients against float64 dense torch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.problems import build
from torch import Tensor

from spfde.kernels.masked import to_dense
from spfde.kernels.triton import conv2d
from spfde.kernels.triton.conv2d_plan import reduce_tile, splits_of, with_transpose
from spfde.pattern import Plan, Window
from spfde.structure import Pattern

ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the norm of the terms, all positive
BLOCKS = ("block:16x16", "block:32x16", "block:16x32", "block:4x1", "block:3x2", "block:5x24", "block:130x2")


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
        shape, block = self.plan.shape, self.values.shape[1:]
        units = with_transpose(self.plan.units, block, shape, self.window)
        return [
            conv2d.compute(self.x, self.values, self.bias, units, shape, self.window, self.relu),
            conv2d.compute_input_grad(self.dy, self.values, units, self.x.shape[2:], shape, self.window),
            *conv2d.compute_weight_grad(self.dy, self.x, units, block, shape, self.window, True),
        ]

    def exact(self, positive: bool = False) -> list[Tensor]:
        """The same in float64, with the terms' absolute values if `positive`."""
        parts = (self.x, self.values, self.bias, self.dy)
        x, values, bias, dy = (t.double().abs() if positive else t.double() for t in parts)
        x, values, bias = (t.contiguous().requires_grad_() for t in (x, values, bias))
        top, bottom, left, right = self.window.padding
        weight = to_dense(values, self.plan.units.places, self.plan.shape)
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, self.window.stride, 0, self.window.dilation)
        grads = torch.autograd.grad(y, (x, values, bias), dy)
        return [y.detach().relu() if self.relu else y.detach(), *grads]


def check(case: Case) -> None:
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    for name, mine, exact, scale in zip(names, case.got(), case.exact(), case.exact(positive=True), strict=True):
        assert mine.shape == exact.shape and mine.dtype == case.x.dtype, name
        assert float((mine.double() - exact).norm()) <= ROUNDING[case.x.dtype] * float(scale.norm()), name


def case(
    shape, window, pattern, density, batch, size, dtype=torch.float32, memory="channels_last", dead=0, relu=False, seed=0
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


THREE = Window((3, 3), (1, 1), (1, 1, 1, 1))


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


def test_pixels_are_cut_into_parts_that_are_added_in_order():
    some = case((16, 16, 1, 1), Window((1, 1), (2, 2)), "block:16x16", 1.0, 2, (90, 90))
    assert splits_of(2 * 45 * 45, 2, reduce_tile(16, 16, 4).pixels) > 1
    check(some)
    first, second = some.got(), some.got()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_slots_that_store_nothing_get_no_gradient():
    some = case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4), dead=3)
    assert not some.got()[2][-3:].any()


def test_results_are_channels_last():
    y, dx = case((16, 32, 3, 3), THREE, "block:16x16", 0.5, 2, (4, 4), memory="contiguous").got()[:2]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, dx))
