"""The choice of a kernel, its reason, and what is refused."""

import pytest
import torch
from kernels.problems import build, choose_convolution, choose_linear
from torch import nn

from spfde.kernels import clock, conv2d, spmm
from spfde.kernels.dispatch import cost, rule
from spfde.kernels.problem import EMPTY, Problem, bucket_of
from spfde.kernels.registry import get
from spfde.kernels.sddmm import resolve
from spfde.nn import SparseConv2d, SparseLinear
from spfde.sparse.kernel_index import Window

F32 = torch.float32
PADDED = Window((3, 3), (1, 1), (1, 1, 1, 1))
PROBLEMS = {
    "linear": Problem(128, (1024, 1024), 0),
    "single sample": Problem(1, (1024, 1024), 0),
    "tiny": Problem(1, (1, 1), 0),
    "4x1": Problem(128, (1024, 1024), 0, (4, 1)),
    "whole outputs": Problem(128, (1024, 1024), 0, (1, 1024)),
    "convolution": Problem(64, (64, 64, 3, 3), 0, window=PADDED, size=(8, 8)),
    "strided": Problem(64, (32, 16, 3, 3), 0, window=Window((3, 3), (2, 2), (1, 1, 1, 1)), size=(16, 16)),
    "depthwise": Problem(64, (64, 1, 3, 3), 0, window=PADDED._replace(groups=64), size=(8, 8)),
    "no batch": Problem(0, (64, 64), 0),
    "no weights": Problem(8, (64, 0), 0),
}


def kernels(problem):
    """The kernel at every density, the sparsest first."""
    buckets = range(EMPTY, -1, -1)
    return [rule.choose("auto", "cpu", F32, problem._replace(bucket=bucket)).kernel for bucket in buckets]


def test_dense_below_the_break_even_and_native_above():
    shape = (1024, 1024)
    dense = choose_linear("auto", "cpu", F32, 512, shape, shape[0] * shape[1] * 9 // 10)
    sparse = choose_linear("auto", "cpu", F32, 512, shape, shape[0] * shape[1] // 20)
    assert (dense.kernel, sparse.kernel) == ("dense", "native")
    assert "predicted" in sparse.reason
    assert "density 0.05" in sparse.reason


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_denser_weight_never_turns_dense_into_native(name):
    chosen = kernels(PROBLEMS[name])
    assert chosen == sorted(chosen, reverse=True)  # "native" before "dense"
    assert set(chosen) <= {"native", "dense"}


def test_the_rule_finds_both_kernels_where_both_can_win():
    assert set(kernels(PROBLEMS["linear"])) == {"native", "dense"}
    assert set(kernels(PROBLEMS["convolution"])) == {"native", "dense"}


def test_the_more_a_block_holds_the_higher_the_density_at_which_it_pays():
    singles, tall = (kernels(PROBLEMS[name]).count("native") for name in ("linear", "4x1"))
    assert singles <= tall < EMPTY + 1
    for isa in cost.COSTS:
        costs = cost.constants("linear", isa)
        single, block = (PROBLEMS[name]._replace(bucket=bucket_of(1, 2)) for name in ("linear", "4x1"))
        assert cost.ratio(block, costs) < cost.ratio(single, costs), isa


def test_an_instruction_set_without_timings_takes_the_measured_ones():
    assert cost.constants("linear", "neon") == cost.constants("linear", "avx2")


@pytest.mark.parametrize(
    ("stored", "size", "bucket"),
    [
        (100, 100, 0),
        (50, 100, 8),
        (25, 100, 16),
        (95_761, 100_000, 0),  # 2 ** (-1 / 16) = 0.957603: the edge of the first bucket
        (95_760, 100_000, 1),
        (0, 100, EMPTY),
        (0, 0, EMPTY),
        (1, 2**24, EMPTY),
        (1, 2**40, EMPTY),
    ],
)
def test_the_buckets_of_a_density(stored, size, bucket):
    assert bucket_of(stored, size) == bucket


def test_a_bucket_holds_its_density_within_five_percent():
    for stored in range(1, 1001):
        problem = Problem(1, (10, 100), bucket_of(stored, 1000))
        assert problem.density == pytest.approx(stored / 1000, rel=0.05)


def test_a_choice_is_a_pure_function_and_says_what_it_is_for():
    args = ("auto", "cpu", F32, (64, 64, 8, 8), (64, 64, 3, 3), PADDED, 3686)
    first = choose_convolution(*args)
    rule.forget()
    assert choose_convolution(*args) == first
    assert first.problem == PROBLEMS["convolution"]._replace(bucket=27)
    assert (first.problem.op, first.problem.positions, first.problem.multiply_adds) == ("conv2d", 4096, 4096 * 36864)
    linear = choose_linear("auto", "cpu", F32, 128, (1024, 1024), 2**20, (4, 1))
    assert linear.problem == PROBLEMS["4x1"]


def test_a_gradient_takes_the_choice_of_its_layer():
    layer = SparseConv2d.from_dense(nn.Conv2d(64, 32, 3, 2, 1), torch.rand(32, 64, 3, 3) < 0.1)
    x = torch.randn(4, 64, 8, 8)
    layer(x)
    args = (tuple(layer.shape), x.shape, layer.plan.kernel_index, (1, 1), layer.window)
    product, problem = resolve("auto", torch.empty(4, 32, 4, 4), *args)
    assert problem == layer.choice.problem
    assert product is get(layer.kernel).products["conv2d"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_whole_outputs_take_their_smaller_product_on_any_device(device):
    choice = choose_linear("auto", device, F32, 64, (8, 6), 42, (1, 6))
    assert (choice.kernel, choice.reason) == ("native", "a dense product over the stored outputs alone")
    assert choose_linear("dense", device, F32, 64, (8, 6), 42, (1, 6)).kernel == "dense"


def test_other_devices_and_precisions_have_no_choice():
    assert choose_linear("auto", "cuda", F32, 64, (8, 8), 6).kernel == "dense"
    assert choose_linear("auto", "cpu", torch.float64, 64, (8, 8), 6).kernel == "reference"
    with pytest.raises(ValueError, match="kernel 'native'.*cuda.*try"):
        choose_linear("native", "cuda", F32, 64, (8, 8), 6)
    with pytest.raises(ValueError, match="kernel 'native'.*float64.*try"):
        choose_linear("native", "cpu", torch.float64, 64, (8, 8), 6)
    with pytest.raises(ValueError, match="expected kernel .* got 'fast'"):
        choose_linear("fast", "cpu", F32, 64, (8, 8), 6)


def test_a_layer_names_its_kernel_and_takes_a_forced_one():
    layer = SparseLinear.from_dense(nn.Linear(64, 64), torch.rand(64, 64) < 0.05)
    assert (layer.kernel, layer.choice) == ("auto", None)
    layer(torch.randn(256, 64))
    assert layer.kernel in ("native", "dense")
    layer.kernel = "dense"
    assert (layer.kernel, layer.choice.reason) == ("dense", "forced by layer.kernel")
    with pytest.raises(ValueError, match="expected kernel .* got 'fast'"):
        layer.kernel = "fast"
    assert layer.kernel == "dense"


def test_bad_input_is_refused_with_what_was_expected():
    plan, values = build((4, 6), None, 0.5, 0, 0)
    with pytest.raises(ValueError, match=r"expected x of shape \[..., 6\], got \[2, 5\]"):
        spmm(torch.randn(2, 5), values, plan)
    with pytest.raises(ValueError, match="expected x of shape"):
        spmm(torch.tensor(1.0), values, plan)
    with pytest.raises(TypeError, match="expected x to be floating point, got torch.int64, try x.float"):
        spmm(torch.ones(2, 6, dtype=torch.int64), values, plan)
    with pytest.raises(ValueError, match="expected x on cpu like the layer, got meta, try"):
        spmm(torch.ones(2, 6, device="meta"), values, plan)
    with pytest.raises(ValueError, match="expected kernel .* got 'fast'"):
        spmm(torch.ones(2, 6), values, plan, None, "fast")
    window = Window((3, 3))
    plan, values = build((4, 2, 3, 3), window, 0.5, 0, 0)
    with pytest.raises(ValueError, match=r"expected x of shape \[batch, 2, height, width\], got \[1, 3, 8, 8\]"):
        conv2d(torch.randn(1, 3, 8, 8), values, plan)
    with pytest.raises(ValueError, match="expected an image at least as large as the kernel"):
        conv2d(torch.randn(1, 2, 2, 8), values, plan)
    with pytest.raises(ValueError, match="expected x on cpu"):
        conv2d(torch.empty(1, 2, 8, 8, device="meta"), values, plan)


def test_the_clock_counts_kernel_time_only_while_it_runs():
    plan, values = build((64, 64), None, 0.5, 0, 0)
    x = torch.randn(64, 64)
    spmm(x, values, plan, None, "native")
    with clock.measure() as outer:
        spmm(x, values, plan, None, "native")
        before = outer.seconds
        with clock.measure() as inner:
            spmm(x, values, plan, None, "native")
    assert 0 < before < outer.seconds
    assert inner.seconds == pytest.approx(outer.seconds - before)
    spmm(x, values, plan, None, "native")
    assert inner.seconds == pytest.approx(outer.seconds - before)
