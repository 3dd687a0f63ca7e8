"""Layers to time: the shapes of real networks, sparse beside dense in the same process.

Every benchmark of a group does the same work on the same random data; `extra_info` holds what a reader needs to turn
seconds into efficiency = speed-up x density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import spfde

SPARSITIES = (0.6, 0.8, 0.9, 0.95, 0.98)
CHANNELS_LAST = {"memory_format": torch.channels_last}


@dataclass(frozen=True)
class Layer:
    """A dense layer and its input: `channels` is (in, out)."""

    kind: str
    batch: int
    channels: tuple[int, int]
    size: int = 1
    kernel: int = 1
    stride: int = 1

    def __str__(self) -> str:
        width = "x".join(map(str, self.channels))
        if self.kind == "linear":
            return f"linear-{self.batch}x{width}"
        return f"conv{self.kernel}x{self.kernel}s{self.stride}-{width}-{self.size}px-b{self.batch}"

    def dense(self) -> nn.Module:
        """The dense layer, always with the same weights."""
        torch.manual_seed(0)
        if self.kind == "linear":
            return nn.Linear(*self.channels)
        return nn.Conv2d(*self.channels, self.kernel, stride=self.stride, padding=self.kernel // 2)

    def input(self) -> Tensor:
        """Random input."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, self.channels[0]) + ((self.size,) * 2 if self.kind == "conv" else ())
        return torch.randn(shape, generator=generator)

    def variant(self, name: str, sparsity: float) -> tuple[nn.Module, Tensor]:
        """A module and its input: "dense", "dense channels_last", "native", "masked" or "auto"."""
        layer, x = self.dense(), self.input()
        if name == "dense":
            return layer, x
        if name == "dense channels_last":
            return layer.to(**CHANNELS_LAST), x.contiguous(**CHANNELS_LAST)
        layer = spfde.sparsify(layer, sparsity)
        layer.kernel = {"native": "native", "masked": "dense", "auto": "auto"}[name]
        return layer, x


LINEAR = [
    Layer("linear", 128, (1024, 1024)),
    Layer("linear", 512, (1024, 1024)),
    Layer("linear", 128, (2048, 2048)),
    Layer("linear", 128, (4096, 1024)),
]
CONV = [
    Layer("conv", 64, (16, 16), 32, 3),
    Layer("conv", 64, (32, 32), 16, 3),
    Layer("conv", 64, (64, 64), 8, 3),
    Layer("conv", 64, (16, 32), 32, 3, 2),
    Layer("conv", 64, (128, 128), 16, 3),
    Layer("conv", 64, (256, 256), 8, 3),
    Layer("conv", 64, (512, 512), 4, 3),
    Layer("conv", 64, (256, 256), 14, 1),
    Layer("conv", 64, (64, 256), 32, 1),
]


def forward_backward(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One training step of the layer alone: forward, input gradient, weight gradient, bias gradient."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        dy = torch.randn_like(module(x))
    inputs = [x, *module.parameters()]

    def step() -> None:
        torch.autograd.grad(module(x), inputs, dy)

    return step
