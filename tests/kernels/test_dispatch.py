"""The choice of a kernel, its reason, and what is refused."""

import pytest
import torch
from kernels.problems import build
from torch import nn

from spfde.kernels import clock, conv2d, dispatch, spmm
from spfde.nn import SparseLinear
from spfde.pattern import Window

F32 = torch.float32


def test_dense_below_the_break_even_and_native_above():
    shape = (1024, 1024)
    dense = dispatch.choose_linear("auto", "cpu", F32, 512, shape, shape[0] * shape[1] * 9 // 10)
    sparse = dispatch.choose_linear("auto", "cpu", F32, 512, shape, shape[0] * shape[1] // 20)
    assert (dense.kernel, sparse.kernel) == ("dense", "native")
    assert "predicted" in sparse.reason
    assert "density 0.05" in sparse.reason


def test_a_choice_is_a_pure_function():
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    args = ("auto", "cpu", F32, 64, (8, 8), (64, 64, 3, 3), window, 3000)
    first = dispatch.choose_convolution(*args)
    dispatch.choose_convolution.cache_clear()
    assert dispatch.choose_convolution(*args) == first


def test_other_devices_and_precisions_have_no_choice():
    assert dispatch.choose_linear("auto", "cuda", F32, 64, (8, 8), 6).kernel == "dense"
    assert dispatch.choose_linear("auto", "cpu", torch.float64, 64, (8, 8), 6).kernel == "reference"
    with pytest.raises(ValueError, match="expected a CPU tensor.*got cuda.*try"):
        dispatch.choose_linear("native", "cuda", F32, 64, (8, 8), 6)
    with pytest.raises(ValueError, match="expected float32.*float64.*try"):
        dispatch.choose_linear("native", "cpu", torch.float64, 64, (8, 8), 6)


def test_a_layer_names_its_kernel_and_takes_a_forced_one():
    layer = SparseLinear.from_dense(nn.Linear(64, 64), torch.rand(64, 64) < 0.05)
    assert (layer.kernel, layer.choice) == ("auto", None)
    layer(torch.randn(256, 64))
    assert layer.kernel in ("native", "dense")
    layer.kernel = "dense"
    assert (layer.kernel, layer.choice.reason) == ("dense", "forced by layer.kernel")
    with pytest.raises(ValueError, match="expected kernel 'auto' or one of 'native', 'dense', 'reference', got 'fast'"):
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
    window = Window((3, 3))
    plan, values = build((4, 2, 3, 3), window, 0.5, 0, 0)
    with pytest.raises(ValueError, match=r"expected x of shape \[batch, 2, height, width\], got \[1, 3, 8, 8\]"):
        conv2d(torch.randn(1, 3, 8, 8), values, plan, window)
    with pytest.raises(ValueError, match="expected an image at least as large as the kernel"):
        conv2d(torch.randn(1, 2, 2, 8), values, plan, window)
    with pytest.raises(ValueError, match="expected x on cpu"):
        conv2d(torch.empty(1, 2, 8, 8, device="meta"), values, plan, window)


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
