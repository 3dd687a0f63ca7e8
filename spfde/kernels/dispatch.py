"""Which kernel runs: a pure function of the problem, so that two runs and a resumed run give the same bits.

The rule predicts the native kernel's speed-up over the dense product, forward + backward, as efficiency / density;
efficiency (design: 1.0 = useful multiply-adds as fast as the dense product does its own) is a small model fitted to
the timings of `benchmarks/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spfde.pattern import Window

KERNELS = ("native", "dense", "reference")


@dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was taken."""

    kernel: str
    reason: str


def check_kernel(kernel: str) -> str:
    """Returns the name.

    Raises:
        ValueError: it names no kernel.
    """
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(f"expected kernel 'auto' or one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    return kernel


def check_device(x: Tensor, values: Tensor) -> None:
    """Raises ValueError if an input and a layer are on different devices."""
    if x.device != values.device:
        raise ValueError(
            f"expected x on {values.device} like the layer, got {x.device}, try x.to({str(values.device)!r})"
        )


def stored(row_ptr: Tensor) -> int:
    """The number of stored weights, read only where that costs no device synchronisation."""
    return int(row_ptr[-1]) if row_ptr.device.type == "cpu" else 0


def linear(kernel: str, x: Tensor, rows: int, nnz: int) -> KernelChoice:
    """The kernel for a sparse [rows, x.shape[1]] weight applied to x [batch, cols]."""
    batch, cols = x.shape
    return choose(kernel, x.device.type, x.dtype, (rows, cols), 1, batch, nnz)


def convolution(kernel: str, x: Tensor, shape: tuple[int, ...], window: Window, nnz: int) -> KernelChoice:
    """The kernel for a sparse weight of dense `shape` applied to x [batch, channels, height, width]."""
    return _convolution(kernel, x, x.shape[0], window.output_size(x.shape[2], x.shape[3]), shape, window, nnz)


def convolution_grad(kernel: str, dy: Tensor, shape: tuple[int, ...], window: Window, nnz: int) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, out, out_height, out_width]."""
    return _convolution(kernel, dy, dy.shape[0], (dy.shape[2], dy.shape[3]), shape, window, nnz)


def _convolution(
    kernel: str, tensor: Tensor, batch: int, size: tuple[int, int], shape: tuple[int, ...], window: Window, nnz: int
) -> KernelChoice:
    taps = window.kernel[0] * window.kernel[1]
    matrix = (shape[0], shape[1] * taps)
    lanes = batch * size[0] * size[1]
    return choose(kernel, tensor.device.type, tensor.dtype, matrix, taps, lanes, nnz, window.groups)


@lru_cache(maxsize=4096)
def choose(
    kernel: str,
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int],
    taps: int,
    lanes: int,
    nnz: int,
    groups: int = 1,
) -> KernelChoice:
    """The kernel for one layer and input.

    shape: (output features, weights per output feature if dense). taps: kernel_h * kernel_w. lanes: batch x output
    positions.

    Raises:
        ValueError: `kernel` is "native" where no native kernel can run.
    """
    if dtype == torch.float64:
        if kernel == "native":
            raise ValueError("expected float32 input for kernel 'native', got float64, try kernel = 'auto'")
        return KernelChoice("reference", "float64 takes the reference path")
    if device != "cpu":
        if kernel == "native":
            raise ValueError(f"expected a CPU tensor for kernel 'native', got {device}, try kernel = 'auto'")
        return KernelChoice("dense" if kernel == "auto" else kernel, f"no sparse kernel for {device} in this build")
    if kernel != "auto":
        return KernelChoice(kernel, "forced by layer.kernel")
    return KernelChoice("native", "cost model pending")
