"""Seconds of the ops of training steps that multiply no weight, on this CPU: in networks, and one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spfde._modules import run
from spfde.bench.network_variants import step_on
from spfde.bench.subject import Network
from spfde.bench.workload import workload
from spfde.nn import FusedNormAct2d
from spfde.profiling.dense_baseline import CHANNELS_LAST, Step, dense_step, takes_images
from spfde.tuning import timing
from spfde.tuning.device_profile import OpSeconds
from spfde.tuning.layer import backward
from spfde.tuning.ops import NORM, NORM_GRAD, OpLog, summarised

# Networks whose other ops are timed, at this batch and an eighth of it: (name, batch, size).
NETWORKS = (
    ("resnet20", 64, None), ("resnet18_cifar", 16, None), ("vit_tiny_cifar", 16, None), ("gpt_micro", 16, 64),
    ("mobilenet_v2_cifar", 32, None), ("resnet18", 4, 128),
)  # fmt: skip
IMAGES = ((1, 64, 8), (4, 64, 28), (16, 64, 56))  # (samples, channels, side)
LARGEST = 2**25  # parameters of an optimizer that is timed beside those of the networks: no cache holds them
HEADS = ((4, 3, 65, 64), (2, 6, 197, 64), (8, 4, 64, 32), (1, 12, 256, 64))  # (samples, heads, tokens, channels)
# What networks of other libraries do to images beside, each with its gradient.
OPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "gelu": F.gelu, "leaky_relu": F.leaky_relu, "relu": F.relu, "elu": F.elu, "dropout": F.dropout,
    "softmax": lambda x: x.softmax(-1), "group_norm": lambda x: F.group_norm(x, 8),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]), "copy": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2), "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "mean": lambda x: x.mean((2, 3)), "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0), "roll": lambda x: x.roll((1, 1), (2, 3)),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True), "cat": lambda x: torch.cat([x, x], 1),
    "scale": lambda x: 0.5 * x, "exp": torch.exp, "pow": lambda x: x.pow(2), "div": lambda x: x / 3.0,
}  # fmt: skip


def measure_ops(
    networks: Sequence[tuple[str, int, int | None]], clock: timing.Clock, repeats: int = 3
) -> list[OpSeconds]:
    """Seconds of the ops by how much there is of them, and of the optimizer."""
    ops, optimizers = [], {}
    for name, batch, size in networks:
        for samples in (batch, max(1, batch // 8)):
            for step in _steps(Network(workload(name, samples, size))):
                for number in range(repeats + 1):
                    with OpLog(clock) as log:
                        step.loss_fn(run(step.model, step.data())).backward()
                    ops += log.ops if number else []
                optimizers[sum(p.numel() * p.element_size() for p in step.model.parameters())] = step.optimizer
    for call in _usual():
        for number in range(repeats + 1):
            with OpLog(clock) as log:
                call()
            ops += log.ops if number else []
    rows = summarised(ops)
    largest = nn.Parameter(torch.zeros(LARGEST))
    largest.grad = torch.zeros(LARGEST)
    optimizers[4 * LARGEST] = torch.optim.SGD([largest], lr=1e-3, momentum=0.9, fused=True)
    for size, optimizer in optimizers.items():
        seconds = min(timing.seconds_of(optimizer.step, clock) for _ in range(5))
        rows.append(OpSeconds("optimizer", size, seconds))
    return [*rows, *measure_norms(clock, repeats)]


def _steps(network: Network) -> Iterator[Step]:
    """Dense steps, in each memory format."""
    step = step_on(network, deepcopy(network.load.model), "cpu", "float32")
    yield step
    if takes_images(network.load.inputs):
        yield dense_step(step, CHANNELS_LAST)


def _usual() -> Iterator[Callable[[], object]]:
    for shape in IMAGES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape + shape[-1:]).contiguous(memory_format=memory_format).requires_grad_()
            yield from (lambda x=x, op=op: _with_gradient(op(x)) for op in OPS.values())
    for shape in HEADS:
        qkv = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        for causal in (False, True):
            yield lambda qkv=qkv, causal=causal: _with_gradient(F.scaled_dot_product_attention(*qkv, is_causal=causal))


def _with_gradient(y: Tensor) -> None:
    y.backward(torch.ones_like(y))


def measure_norms(clock: timing.Clock, repeats: int) -> list[OpSeconds]:
    """Seconds of norm_act and its gradients as an eager step calls them: in a log they would run as registered ops."""
    found = []
    for samples, channels, side in IMAGES:
        for residual in (None, torch.randn(samples, channels, side, side, requires_grad=True)):
            norm = FusedNormAct2d(channels).train()
            x = torch.randn(samples, channels, side, side, requires_grad=True)
            module = lambda x, norm=norm, residual=residual: norm(x, residual, "relu")  # noqa: E731
            with OpLog() as log:
                _with_gradient(module(x))
            wanted = [x, *norm.parameters(), *([] if residual is None else [residual])]
            calls = {NORM: lambda module=module, x=x: module(x), NORM_GRAD: backward(module, x, wanted)}
            # Warm, where it fits into a cache: what a norm reads was written by the layer before it.
            seconds = timing.interleaved(calls, 3 * repeats, clock=clock)
            amounts = {op.name: op.amount for op in log.ops if op.name in calls}
            found += [OpSeconds(name, amounts[name], median(seconds[name])) for name in calls]
    return found
