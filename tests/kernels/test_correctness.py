"""Outputs and every gradient against float64 dense torch, over drawn shapes; rerun per instruction set by test_isas."""

import pytest
import torch
from hypothesis import given, settings
from kernels.problems import BLOCKS, Problem, build, convolution, finish, linear

from spfde.kernels import conv2d, spmm
from spfde.sparse.kernel_index import Window
from spfde.sparse.plan import build_plan, index_from_positions

TOLERANCE = 1e-5  # of the result's norm
ROUNDING = 3e-7  # of the norm without cancellation: a sum that happens to cancel has no relative accuracy to ask for
NAMES = ("output", "input gradient", "weight gradient", "bias gradient")


def check(problem: Problem, kernel: str) -> None:
    y = problem.run(kernel)
    got = [y, *torch.autograd.grad(y, problem.inputs(), problem.dy)]
    for name, mine, exact, scale in zip(NAMES, got, problem.exact(), problem.magnitudes(), strict=False):
        assert mine.shape == exact.shape, name
        error = float((mine.detach().double() - exact).norm())
        assert error <= max(TOLERANCE * float(exact.norm()), ROUNDING * float(scale.norm())), name


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@given(problem=linear())
@settings(max_examples=60, deadline=None)
def test_linear(kernel, problem):
    check(problem, kernel)


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@given(problem=convolution())
@settings(max_examples=120, deadline=None)
def test_convolution(kernel, problem):
    check(problem, kernel)


@given(problem=convolution(groups=(2, 5, 8), channels=4, spare=40, batches=(0, 1, 7, 8, 17)))
@settings(max_examples=120, deadline=None)
def test_convolution_in_narrow_groups(problem):
    """One group at a time: small images in lanes, large ones joined."""
    check(problem, "native")


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@given(problem=linear(BLOCKS))
@settings(max_examples=60, deadline=None)
def test_linear_in_blocks(kernel, problem):
    check(problem, kernel)


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@given(problem=convolution(BLOCKS))
@settings(max_examples=120, deadline=None)
def test_convolution_in_blocks(kernel, problem):
    check(problem, kernel)


@pytest.mark.full
@pytest.mark.parametrize("draw", [linear, convolution])
@pytest.mark.parametrize("patterns", [("unstructured",), BLOCKS], ids=["single", "blocks"])
def test_native_over_many_more_problems(draw, patterns):
    @given(problem=draw(patterns))
    @settings(max_examples=3000, deadline=None)
    def many(problem):
        check(problem, "native")

    many()


def layer(shape, window, density, pattern="unstructured"):
    return build(shape, window, density, 0, 0, pattern)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [((16, 16), 32, 3, 1), ((64, 64), 8, 3, 1), ((130, 70), 4, 3, 1), ((16, 32), 32, 3, 2), ((96, 40), 14, 1, 1),
     ((3, 8), 56, 7, 2)],
)  # fmt: skip
def test_convolutions_of_real_networks(channels, size, kernel, stride, pattern):
    pad = kernel // 2
    window = Window((kernel, kernel), (stride, stride), (pad,) * 4)
    plan, values = layer((channels[1], channels[0], kernel, kernel), window, 0.1, pattern)
    x = torch.randn(9, channels[0], size, size, generator=torch.Generator().manual_seed(3))
    check(finish(plan, window, x, values, True, 0), "native")


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dy_memory", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolutions_in_any_memory_format(memory, dy_memory, pattern):
    window = Window()
    plan, values = layer((40, 150, 1, 1), window, 0.2, pattern)
    x = torch.randn(5, 150, 7, 9, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=memory)
    problem = finish(plan, window, x, values, True, 0)
    problem.dy = problem.dy.contiguous(memory_format=dy_memory)
    check(problem, "native")


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1", "block:8x4"])
@pytest.mark.parametrize(("rows", "cols", "batch"), [(1000, 1030, 130), (1, 5000, 3), (3000, 1, 65), (257, 511, 300)])
def test_wide_linear_layers_cross_panels_and_tiles(rows, cols, batch, pattern):
    plan, values = layer((rows, cols), None, 0.1, pattern)
    x = torch.randn(batch, cols, generator=torch.Generator().manual_seed(3))
    check(finish(plan, None, x, values, True, 0), "native")


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("batch", [2, 37, 130])
def test_gradients_of_linear_layers_stay_in_lanes(batch, pattern):
    plan, values = layer((60, 150), None, 0.2, pattern)
    x = torch.randn(batch, 150, generator=torch.Generator().manual_seed(3))
    dy = torch.randn(batch, 60, generator=torch.Generator().manual_seed(4))
    results = []
    for lay in (torch.Tensor.contiguous, lambda t: t.t().contiguous().t()):
        leaf, weight = lay(x).requires_grad_(), values.detach().requires_grad_()
        y = spmm(leaf, weight, plan, None, "native")
        results.append((y, *torch.autograd.grad(y, (leaf, weight), lay(dy))))
        for mixed in (x, lay(x).requires_grad_()):  # where the two gradients' layouts differ one is copied
            spmm(mixed, weight, plan, None, "native").backward(dy)
    rows, lanes = results
    assert lanes[0].is_contiguous()  # as nn.Linear's result is, whatever the input's layout
    assert lanes[1].stride() == (1, batch)
    for a, b in zip(rows, lanes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [0, 5, 67])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "groups"),
    # of the last, outputs that read padding alone
    [((3, 3), (1, 1), 1, 1), ((3, 2), (2, 1), 2, 2), ((3, 1), (1, 1), 1, 1), ((1, 2), (1, 1), 2, 1)],
)
def test_both_gradients_of_a_convolution_are_those_of_the_ops_apart(
    kernel, stride, pad, groups, memory, batch, threads
):
    before = torch.get_num_threads()
    window = Window(kernel, stride, (pad, pad, kernel[1] // 2, kernel[1] // 2), (1, 1), groups)
    plan, values = layer((24, 16 // groups, *kernel), window, 0.3)
    x = torch.randn(batch, 16, 17, 13, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=memory)
    problem = finish(plan, window, x, values, True, 0)

    def gradients(*wanted):
        for tensor in problem.inputs():
            tensor.requires_grad_(any(tensor is other for other in wanted))
        return torch.autograd.grad(problem.run("native"), wanted, problem.dy)

    x, values, bias = problem.inputs()
    try:
        torch.set_num_threads(threads)
        apart = *gradients(x), *gradients(values, bias)
        together = gradients(x, values, bias)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_empty_rows_and_columns():
    positions = torch.tensor([5 * 40 + 7, 5 * 40 + 9, 30 * 40 + 7])
    plan = build_plan(index_from_positions(positions, 33, 40, 3), (33, 40))
    values = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    check(finish(plan, None, torch.randn(11, 40), values, True, 0), "native")


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 7, 70])
def test_any_number_of_threads(threads, batch):
    before = torch.get_num_threads()
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    try:
        torch.set_num_threads(threads)
        for pattern in ("unstructured", "block:4x1"):  # work enough for every thread
            conv, conv_values = layer((40, 24, 3, 3), window, 0.3, pattern=pattern)
            lin, lin_values = layer((210, 700), None, 0.3, pattern=pattern)
            check(finish(conv, window, torch.randn(batch, 24, 14, 14), conv_values, True, 0), "native")
            check(finish(lin, None, torch.randn(batch, 700), lin_values, True, 0), "native")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize(
    ("shape", "stride", "x_shape"),
    [((20, 6, 3, 3), 2, (13, 6, 9, 9)), ((128, 128, 3, 3), 1, (2, 128, 4, 4)), ((64, 32, 3, 3), 1, (24, 32, 16, 16))],
)
def test_same_bits_twice_and_for_any_thread_count(shape, stride, x_shape, pattern):
    window = Window((3, 3), (stride, stride), (1, 1, 1, 1))
    plan, values = layer(shape, window, 0.3, pattern=pattern)
    x = torch.randn(x_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2, 4):
            torch.set_num_threads(threads)
            y = conv2d(x, values, plan, None, "native")
            dx, dv = torch.autograd.grad(y, (x, values), torch.ones_like(y))
            runs.append((y.detach(), dx, dv))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    for run in runs[2:]:  # outputs and input gradients do not depend on the split, weight gradients sum over it
        assert torch.equal(runs[0][0], run[0])
        assert torch.equal(runs[0][1], run[1])


@pytest.mark.parametrize(
    ("channels", "groups", "size", "batch", "pattern"),
    [((32, 204), 2, 16, 16, "block:4x4"), ((16, 780), 2, 8, 16, "block:2x4"), ((24, 260), 1, 9, 16, "block:4x4")],
)
def test_blocks_that_groups_or_panels_could_cut(channels, groups, size, batch, pattern):
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), groups=groups)
    rows, cols = channels
    plan, values = layer((rows, cols // groups, 3, 3), window, 0.2, pattern=pattern)
    check(finish(plan, window, torch.randn(batch, cols, size, size), values, True, 0), "native")


def test_a_nan_stays_where_the_dense_product_would_put_it():
    plan, values = layer((4, 6), None, 1.0)
    x = torch.randn(3, 6)
    x[1, 2] = float("nan")
    y = spmm(x, values, plan, None, "native")
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()
