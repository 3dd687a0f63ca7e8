"""Triton's 1x1 convolutions in its interpreter: linear layers by the flag of convolutions. Run by test_interpreter."""

from __future__ import annotations

import pytest
import torch
from kernels.problems import build
from kernels.triton.interpreted_conv2d import launched

from spfde.kernels import conv2d
from spfde.kernels.triton.index import tiles_of
from spfde.sparse.index import index_from_positions
from spfde.sparse.kernel_index import Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import build_plan


def pointwise() -> None:
    """One step of a pointwise convolution, against the masked product."""
    plan, values = build((32, 16, 1, 1), Window(), 0.7, 0, 0, "block:16x16")
    x = torch.randn(1, 16, 3, 3, requires_grad=True)
    grads = [torch.autograd.grad(conv2d(x, values, plan, None, kernel).square().sum(), (x, values))
             for kernel in ("dense", "triton")]  # fmt: skip
    for dense, triton in zip(*grads, strict=True):
        torch.testing.assert_close(triton, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("allowed", "expected"), [(False, "ieee"), (True, "tf32")])
def test_a_pointwise_convolution_runs_as_a_linear_layer_by_the_flag_of_convolutions(monkeypatch, allowed, expected):
    from spfde.kernels.triton import sddmm, spmm

    names, given = launched(monkeypatch), []
    for module in (spmm, sddmm):
        real = module.launch
        monkeypatch.setattr(
            module, "launch", lambda *a, real=real, **kw: (given.append(kw.get("PRECISION")), real(*a, **kw))
        )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    pointwise()
    assert {"spmm_kernel", "sddmm_kernel"} <= set(names) and not any("conv2d" in name for name in names)
    assert [precision for precision in given if precision] == [expected] * 3


@pytest.mark.parametrize("allowed", [False, True])
def test_a_long_row_of_a_pointwise_convolution_is_cut_and_joined(monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    shape = (1024, 4096, 1, 1)
    grid = Pattern.parse("block:64x64").grid(shape)
    positions = torch.cat([torch.arange(64), torch.arange(1, 16) * 64])
    plan = build_plan(index_from_positions(positions, *grid.shape, 79), shape, Window(), grid)
    assert (tiles_of(plan)[0].split[:, 0] >= 0).any()
    values, x = torch.randn(79, 64, 64), torch.randn(1, 4096, 2, 3)
    y = conv2d(x, values, plan, None, "triton")
    torch.testing.assert_close(y, conv2d(x, values, plan, None, "dense"), atol=1e-3, rtol=1e-4)
