"""A layer to time, named by its shape and input, and the parts of a training step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from spfde.convert.sparsify import sparsify
from spfde.kernels.problem import Problem
from spfde.nn import SparseLayer
from spfde.sparse.kernel_index import ONE_TAP, Window
from spfde.sparse.pattern import Pattern

DTYPES = {
    "float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip

Timed = Callable[[], object]


@dataclass(frozen=True)
class LayerSpec:
    """A linear layer [outputs, inputs], or a convolution [outputs, inputs, kernel_h, kernel_w] padded by half of that.

    batch: samples (of a linear layer: rows of its input). size: pixels a side, of a convolution's images. pattern: as
    `spfde.sparsify` takes it. dtype: one of DTYPES; "tf32" is float32 that torch may round. stride: of a convolution.

    Raises:
        ValueError: a field does not fit.
    """

    shape: tuple[int, ...]
    batch: int
    size: int = 1
    pattern: str = "unstructured"
    dtype: str = "float32"
    stride: int = 1

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 4) or min(self.shape) < 1:
            raise ValueError(f"expected a shape [outputs, inputs(, height, width)], got {list(self.shape)}")
        for name in ("batch", "size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("size", "stride"):
            if getattr(self, name) > 1 and len(self.shape) == 2:
                got = getattr(self, name)
                raise ValueError(f"expected {name} of a convolution alone, got {got}, try --shape OUTxINx3x3")
        if self.dtype not in DTYPES:
            raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        Pattern.parse(self.pattern)

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        image = f"{stride} {self.size}px" if self.convolution else ""
        what = "conv2d" if self.convolution else "linear"
        return f"{what} {'x'.join(map(str, self.shape))}{image} batch {self.batch} {self.pattern} {self.dtype}"

    @property
    def convolution(self) -> bool:
        """Whether it is one."""
        return len(self.shape) == 4

    @property
    def window(self) -> Window:
        """How its weight is applied."""
        if not self.convolution:
            return ONE_TAP
        rows, cols = (side // 2 for side in self.shape[2:])
        return Window(self.shape[2:], (self.stride, self.stride), (rows, rows, cols, cols))

    @property
    def kind(self) -> torch.dtype:
        """The precision of its tensors."""
        return DTYPES[self.dtype]

    def problem(self, bucket: int = 0) -> Problem:
        """What dispatch sees of it on a GPU, in a density bucket."""
        size, dtype = self.window.output_size(self.size, self.size), str(self.kind).removeprefix("torch.")
        block = Pattern.parse(self.pattern).numbers
        return Problem(self.batch, self.shape, bucket, block, self.window, size, dtype)

    def dense(self, device: str) -> nn.Module:
        """The dense layer, always with the same random weights."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            if not self.convolution:
                layer: nn.Module = nn.Linear(self.shape[1], self.shape[0])
            else:
                window = self.window
                layer = nn.Conv2d(*self.shape[1::-1], self.shape[2:], window.stride, window.padding[::2])
        return layer.to(device, self.kind)

    def sparse(self, density: float, device: str) -> SparseLayer:
        """The sparse layer with the dense one's weights at random places."""
        return sparsify(self.dense(device), 1 - density, pattern=self.pattern)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[batch, inputs], or [batch, inputs, size, size]."""
        return self.batch, self.shape[1], *((self.size, self.size) if self.convolution else ())

    def input(self, device: str, last: bool = False) -> Tensor:
        """Random input, always the same. last: in channels_last memory."""
        x = torch.randn(self.input_shape, generator=torch.Generator().manual_seed(1))
        x = x.to(device, self.kind)
        return x.contiguous(memory_format=torch.channels_last) if last and self.convolution else x


def forward(module: Callable[[Tensor], Tensor], x: Tensor) -> Timed:
    """The forward pass with nothing kept for a backward one."""
    return torch.no_grad()(lambda: module(x))


def backward(module: Callable[[Tensor], Tensor], x: Tensor, wanted: list[Tensor]) -> Timed:
    """The gradients of `wanted` alone; the forward pass is made once, at the first call."""
    made = cache(lambda: module(x))
    dy = cache(lambda: _gradient(made()))
    return lambda: torch.autograd.grad(made(), wanted, dy(), retain_graph=True)


def step(module: Callable[[Tensor], Tensor], x: Tensor, wanted: list[Tensor]) -> Timed:
    """Forward and the gradients of `wanted`."""
    dy = cache(lambda: _gradient(module(x)))
    return lambda: torch.autograd.grad(module(x), wanted, dy())


def _gradient(y: Tensor) -> Tensor:
    """A random one, the same on every device."""
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return torch.empty_like(y.detach()).copy_(dy)


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Lets torch round float32 products to TF32 if that is the precision, and not otherwise; afterwards as before."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = dtype == "tf32"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
