"""norm_act: batch norm (+ residual) + ReLU forward and backward, torch's separate ops timed in between every round."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from spfde.kernels.norm_act import norm_act, norm_act_ref

FORMATS = [{"memory_format": format_} for format_ in (torch.contiguous_format, torch.channels_last)]
SHAPES = [(64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (32, 512, 7, 7)]


def forward_backward(op: Callable, shape: tuple[int, ...], layout: dict, added: bool) -> Callable[[], None]:
    """One training step of the op on random data, the same for every op."""
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = (torch.randn(shape, generator=generator).contiguous(**layout) for _ in range(3))
    weight, bias = torch.rand(2, shape[1], generator=generator)
    running = torch.zeros(shape[1]), torch.ones(shape[1])
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias, *([residual] if added else []))]

    def step() -> None:
        x, weight, bias, *rest = inputs
        y = op(x, *running, weight, bias, residual=rest[0] if added else None, act="relu", training=True)
        torch.autograd.grad(y, inputs, dy)

    return step


@pytest.mark.parametrize("added", [False, True], ids=["norm+relu", "norm+add+relu"])
@pytest.mark.parametrize("layout", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_forward_backward(benchmark, shape, layout, added):
    fused, separate = (forward_backward(op, shape, layout, added) for op in (norm_act, norm_act_ref))
    seconds = []

    def torchs_turn() -> None:
        start = time.perf_counter()
        separate()
        seconds.append(time.perf_counter() - start)

    benchmark.group = "norm_act forward + backward"
    benchmark.pedantic(fused, setup=torchs_turn, rounds=30, warmup_rounds=3)
    torch_median = statistics.median(seconds)
    benchmark.extra_info.update(threads=torch.get_num_threads(), torch_ms=1e3 * torch_median)
    if benchmark.enabled:
        benchmark.extra_info["speedup"] = torch_median / benchmark.stats.stats.median
