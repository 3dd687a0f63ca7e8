"""Which kernel runs: a pure function of the problem, so that two runs and a resumed run give the same bits."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spfde.kernels import cost
from spfde.kernels.choice import KERNELS, KernelChoice
from spfde.pattern import Window


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
    return choose_linear(kernel, x.device.type, x.dtype, x.shape[0], (rows, x.shape[1]), nnz)


def convolution(kernel: str, x: Tensor, shape: tuple[int, ...], window: Window, nnz: int) -> KernelChoice:
    """The kernel for a sparse weight of dense `shape` applied to x [batch, channels, height, width]."""
    size = window.output_size(x.shape[2], x.shape[3])
    return choose_convolution(kernel, x.device.type, x.dtype, x.shape[0], size, shape, window, nnz)


def convolution_grad(kernel: str, dy: Tensor, shape: tuple[int, ...], window: Window, nnz: int) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, out, out_height, out_width]."""
    size = (dy.shape[2], dy.shape[3])
    return choose_convolution(kernel, dy.device.type, dy.dtype, dy.shape[0], size, shape, window, nnz)


@lru_cache(maxsize=4096)
def choose_linear(
    kernel: str, device: str, dtype: torch.dtype, batch: int, shape: tuple[int, int], nnz: int
) -> KernelChoice:
    """The kernel for a linear layer; `dtype` is the input's.

    Raises:
        ValueError: `kernel` names a kernel that cannot run on this device or in this precision.
    """
    return _settled(kernel, device, dtype) or cost.choose(cost.linear(batch, shape, nnz))


@lru_cache(maxsize=4096)
def choose_convolution(
    kernel: str,
    device: str,
    dtype: torch.dtype,
    batch: int,
    size: tuple[int, int],
    shape: tuple[int, ...],
    window: Window,
    nnz: int,
) -> KernelChoice:
    """The kernel for a convolution with outputs of `size`; `dtype` is the input's.

    Raises:
        ValueError: `kernel` names a kernel that cannot run on this device or in this precision.
    """
    return _settled(kernel, device, dtype) or cost.choose(cost.convolution(batch, size, shape, window, nnz))


def _settled(kernel: str, device: str, dtype: torch.dtype) -> KernelChoice | None:
    """The choice where there is none to make."""
    if dtype == torch.float64:
        if kernel == "native":
            raise ValueError("expected float32 input for kernel 'native', got float64, try kernel = 'auto'")
        return KernelChoice("reference", "float64 takes the reference path")
    if device != "cpu":
        if kernel == "native":
            raise ValueError(f"expected a CPU tensor for kernel 'native', got {device}, try kernel = 'auto'")
        return KernelChoice("dense" if kernel == "auto" else kernel, f"no sparse kernel for {device} in this build")
    return None if kernel == "auto" else KernelChoice(kernel, "forced by layer.kernel")
