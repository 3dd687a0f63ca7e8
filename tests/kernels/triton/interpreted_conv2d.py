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
from spfde.kernels import gpu as gpus
from spfde.kernels.epilogue import ACTIVATIONS, Epilogue
from spfde.kernels.scatter import to_dense
from spfde.kernels.triton import config, index
from spfde.kernels.triton.index import TileIndex, tiles_of
from spfde.sparse.kernel_index import Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import Plan

ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the norm of the terms, all positive
BLOCKS = ("block:16x16", "block:16x16", "block:32x16", "block:16x32", "block:16x128")
THREE = Window((3, 3), (1, 1), (1, 1, 1, 1))
ACTS = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu}


@dataclass(frozen=True)
class Case:
    """A convolution on concrete tensors."""

    plan: Plan
    window: Window
    x: Tensor
    values: Tensor
    bias: Tensor
    dy: Tensor
    scale: Tensor | None = None
    residual: Tensor | None = None
    act: str = "none"

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(self.bias, self.scale, self.residual, self.act)

    def got(self) -> list[Tensor]:
        from spfde.kernels.triton import conv2d as kernels

        shape, block = self.plan.shape, self.values.shape[1:]
        first, second = tiles_of(self.plan)
        units = TileIndex(*self.plan.kernel_index, *first, *second)
        return [
            kernels.forward(self.x, self.values, self.epilogue, units, shape, self.window),
            kernels.input_grad(self.dy, self.values, units, self.x.shape[2:], shape, self.window),
            *kernels.weight_grad(self.dy, self.x, units, block, shape, self.window, True),
        ]

    def exact(self, positive: bool = False) -> list[Tensor]:
        """The same in float64, with the terms' absolute values if `positive`."""
        ones, zeros = torch.ones(1), torch.zeros(1)
        parts = (self.x, self.values, self.bias, self.dy, ones if self.scale is None else self.scale,
                 zeros if self.residual is None else self.residual)  # fmt: skip
        x, values, bias, dy, scale, residual = (t.double().abs() if positive else t.double() for t in parts)
        x, values, bias = (t.contiguous().requires_grad_() for t in (x, values, bias))
        top, bottom, left, right = self.window.padding
        weight = to_dense(values, self.plan.kernel_index, self.plan.shape)
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, self.window.stride, 0, self.window.dilation)
        grads = torch.autograd.grad(y, (x, values, bias), dy)
        z = (y - bias.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + residual
        return [ACTS[self.act](z).detach(), *grads]


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
    act="none",
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
    scale = residual = None
    if act != "none":
        scale = torch.randn(shape[0], generator=generator).to(dtype)
        residual = torch.randn(dy.shape, generator=generator).to(dtype)
    return Case(plan, window, x, values, bias, dy, scale, residual, act)


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
        draw(st.sampled_from(ACTIVATIONS)), draw(st.integers(0, 2**16)),
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
    for tiles in tiles_of(some.plan):
        assert (tiles.work[:, 1] == tiles.work[:, 2]).any()
    check(some)


@pytest.mark.parametrize("together", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_of_blocks_that_share_a_program(monkeypatch, together, stride):
    monkeypatch.setattr(index, "together_of", lambda *_: together)
    check(case((80, 48, 3, 2), Window((3, 2), (stride, 1), (1, 0, 1, 0)), "block:16x16", 0.3, 2, (7, 5), act="relu6"))


def test_taps_side_by_side_are_read_where_each_lies():
    some = case((16, 16, 3, 3), THREE._replace(dilation=(2, 1)), "block:16x16", 1.0, 1, (6, 5))
    how = config.product_config(gpus.gpu_at(some.x.device), 16, 16, 1, some.x.dtype, 30, False)
    assert how.depth > 16
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
        y = conv2d(inputs[0], values, plan, inputs[2], kernel)
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
            y = conv2d(x, values, plan, None, kernel)
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
        (True, True, ["conv2d_kernel", "conv2d_kernel", "conv2d_grad_kernel"]),
        (True, False, ["conv2d_kernel", "conv2d_kernel"]),
        (False, True, ["conv2d_kernel", "conv2d_grad_kernel"]),
        (False, False, ["conv2d_kernel"]),
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
        y = conv2d(x, values, plan, bias, "triton")
    y.sum().backward()
    assert names == expected
    assert (x.shape in kept) == trained
    assert (x.grad is None, values.grad is None) == (not needs_x, not trained)


@pytest.mark.parametrize(("allowed", "expected"), [(False, "ieee"), (True, "tf32")])
def test_float32_is_rounded_where_torch_allows_it_to_convolutions(monkeypatch, allowed, expected):
    from spfde.kernels.triton import conv2d as kernels

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    given = []
    monkeypatch.setattr(kernels, "launch", lambda *_, **options: given.append(options["PRECISION"]))
    case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4)).got()
    case((16, 16, 3, 3), THREE, "block:16x16", 0.5, 1, (4, 4), torch.float16).got()
    assert given == [expected] * 3 + ["ieee"] * 3


def test_tiles_of_the_transpose_hold_every_block_once_by_what_it_reads():
    window = Window((3, 2), (2, 1), (1, 1, 0, 1), (1, 2))
    plan = build((48, 80, 3, 2), window, 0.4, 3, 1, "block:16x16")[0]
    tiles = tiles_of(plan)[1]
    groups = -(-5 // tiles.together)  # of a residue
    found = []
    for column, group, *slots in tiles.entry.tolist():
        for row, slot in enumerate(slots):
            if slot >= 0:
                residue, channel = group // groups, group % groups * tiles.together + row
                assert residue == column % 6 // 2 % 2
                found.append((column // 6 * 30 + channel * 6 + column % 6, slot))
    assert sorted(found) == list(zip(plan.positions.tolist(), range(plan.nnz), strict=True))


def test_groups_are_refused_with_the_reason():
    window = THREE._replace(groups=2)
    plan, values = build((32, 16, 3, 3), window, 0.5, 0, 0, "block:16x16")
    with pytest.raises(ValueError, match="got: no sparse kernel for groups there, try kernel = 'auto'"):
        conv2d(torch.randn(1, 32, 4, 4), values, plan, None, "triton")
