"""Drawn problems for the ops, and their answer in float64 with plain dense torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from pytest import MonkeyPatch
from torch import Tensor

from spfde.kernels import conv2d, dense, spmm
from spfde.kernels.dispatch import rule
from spfde.kernels.problem import KernelChoice, problem_of
from spfde.kernels.scatter import to_dense
from spfde.kernels.triton import kernel as triton_kernel
from spfde.sparse.index import index_from_positions
from spfde.sparse.kernel_index import ONE_TAP, Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import Plan, build_plan

AWKWARD = [1, 2, 3, 5, 7, 8, 13, 17, 31, 32, 33, 64, 65, 100]
DENSITIES = [0.0, 0.02, 0.1, 0.3, 0.7, 1.0]
BLOCKS = ("block:2x1", "block:4x1", "block:8x1", "block:4x4", "block:3x2", "block:1x4", "block:16x3", "channel")


@dataclass
class Problem:
    """An op on concrete tensors: `run(kernel)` is what is tested, `exact()` the float64 answer."""

    plan: Plan
    window: Window | None
    x: Tensor
    values: Tensor
    bias: Tensor | None
    dy: Tensor

    def run(self, kernel: str) -> Tensor:
        if self.window is None:
            return spmm(self.x, self.values, self.plan, self.bias, kernel)
        return conv2d(self.x, self.values, self.plan, self.bias, kernel)

    def inputs(self) -> list[Tensor]:
        return [t for t in (self.x, self.values, self.bias) if t is not None]

    def exact(self) -> list[Tensor]:
        """Output, then the gradients of x, values and bias, all float64 (contiguous: see spfde.kernels.dense)."""
        return self._dense([t.detach().double().contiguous() for t in self.inputs()], self.dy.double())

    def magnitudes(self) -> list[Tensor]:
        """The same sums with every term made positive: the scale of what rounding can do to them."""
        return self._dense([t.detach().double().abs().contiguous() for t in self.inputs()], self.dy.double().abs())

    def _dense(self, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
        x, values, *bias = (t.requires_grad_() for t in inputs)
        weight = to_dense(self.plan.arrange(values), self.plan.kernel_index, self.plan.shape)
        b = bias[0] if bias else None
        linear = torch.nn.functional.linear
        y = linear(x, weight, b) if self.window is None else dense.convolution(x, weight, b, self.window)
        return [y.detach(), *torch.autograd.grad(y, [x, values, *bias], dy)]


def build(
    shape: tuple[int, ...], window: Window | None, density: float, dead: int, seed: int, pattern: str = "unstructured"
) -> tuple[Plan, Tensor]:
    """A plan with a random mask, and values with `dead` slots past the live ones."""
    generator, window = torch.Generator().manual_seed(seed), window or Window()
    rule = Pattern.parse(pattern)
    grid = rule.grid(shape, window.groups)
    positions = (torch.rand(grid.size, generator=generator) < density).nonzero().view(-1)
    capacity = positions.numel() + dead
    values = torch.randn(capacity, *grid.block, generator=generator)
    values[positions.numel() :] = 0
    index = index_from_positions(positions, *grid.shape, capacity)
    return build_plan(index, shape, window, grid, rule.kind == "channel"), values.requires_grad_()


def finish(plan: Plan, window: Window | None, x: Tensor, values: Tensor, bias: bool, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed + 1)
    b = torch.randn(plan.rows, generator=generator, requires_grad=True) if bias else None
    problem = Problem(plan, window, x.requires_grad_(), values, b, torch.empty(0))
    with torch.no_grad():
        problem.dy = torch.randn(problem.run("dense").shape, generator=generator)
    return problem


@st.composite
def linear(draw, patterns: tuple[str, ...] = ("unstructured",)) -> Problem:
    rows, cols = draw(st.sampled_from(AWKWARD)), draw(st.sampled_from([*AWKWARD, 257, 700]))
    batch = draw(st.sampled_from([(0,), (1,), (2,), (9,), (64,), (70,), (3, 5), (2, 1, 33)]))
    seed = draw(st.integers(0, 2**16))
    density, dead, pattern = (draw(st.sampled_from(choices)) for choices in (DENSITIES, [0, 4], patterns))
    plan, values = build((rows, cols), None, density, dead, seed, pattern)
    generator = torch.Generator().manual_seed(seed + 2)
    x = torch.randn(*batch, cols, generator=generator)
    if draw(st.booleans()):  # a view whose rows are not adjacent
        x = torch.randn(*batch, cols + 3, generator=generator)[..., 1:-2]
    return finish(plan, None, x, values, draw(st.booleans()), seed)


@st.composite
def convolution(
    draw,
    patterns: tuple[str, ...] = ("unstructured",),
    groups: tuple[int, ...] = (1, 1, 1, 2, 3),
    channels: int = 9,
    spare: int = 17,
    batches: tuple[int, ...] = (0, 1, 2, 5, 9),
) -> Problem:
    """`channels`: most of a group. `spare`: most pixels of an axis beyond what the kernel needs."""
    groups, pattern = draw(st.sampled_from(groups)), draw(st.sampled_from(patterns))
    out_group, in_group = draw(st.integers(1, channels)), draw(st.integers(1, channels))
    if groups > 1 and pattern.startswith("block"):  # a block may not span two groups
        out_group *= Pattern.parse(pattern).numbers[0]
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation = pair(1, 4), pair(1, 3), pair(1, 3)
    window = Window(kernel, stride, (*pair(0, 3), *pair(0, 3)), dilation, groups)
    least = [max(1, d * (k - 1) + 1 - a - b) for d, k, a, b in zip(
        dilation, kernel, window.padding[::2], window.padding[1::2], strict=True)]  # fmt: skip
    height, width = (draw(st.integers(n, n + spare)) for n in least)
    seed = draw(st.integers(0, 2**16))
    shape = (out_group * groups, in_group, *kernel)
    density, dead = draw(st.sampled_from(DENSITIES)), draw(st.sampled_from([0, 4]))
    plan, values = build(shape, window, density, dead, seed, pattern)
    generator = torch.Generator().manual_seed(seed + 2)
    batch = draw(st.sampled_from(batches))
    x = torch.randn(batch, in_group * groups, height, width, generator=generator)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "view"]))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "view":
        x = torch.randn(batch, in_group * groups, width + 2, height + 1, generator=generator)
        x = x.transpose(2, 3)[:, :, 1:, 2:]
    return finish(plan, window, x, values, draw(st.booleans()), seed)


def choose_linear(route, device, dtype, batch, shape, stored, block=(1, 1)) -> KernelChoice:
    """The kernel for a linear layer with `stored` weights."""
    problem = problem_of(shape, (batch, shape[1]), stored, block, ONE_TAP, device, dtype)
    return rule.choose(route, device, dtype, problem)


def choose_convolution(route, device, dtype, x_shape, shape, window, stored, block=(1, 1)) -> KernelChoice:
    """The kernel for a convolution with `stored` weights."""
    return rule.choose(route, device, dtype, problem_of(shape, x_shape, stored, block, window, device, dtype))


def choose_on(problem, dtype, absent, gpu) -> KernelChoice:
    """The choice on a machine with `gpu`, where Triton cannot run because of `absent`, if anything."""
    with MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel, "why_not", lambda device: absent)
        patch.setattr(triton_kernel, "gpu_here", lambda: gpu)
        rule.forget()
        try:
            return rule.choose("auto", "cuda", dtype, problem)
        finally:
            rule.forget()
