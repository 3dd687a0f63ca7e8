"""Which kernel runs: a pure function of the problem, so that two runs and a resumed run give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from spfde.kernels import cost
from spfde.kernels.choice import KERNELS, KernelChoice
from spfde.pattern import Window

Block = tuple[int, int]


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


def stored(unit_ptr: Tensor, block: Sequence[int]) -> tuple[int, Block]:
    """The number of stored weights, read only where that costs no device synchronisation, and the block."""
    height, width = block
    return int(unit_ptr[-1]) * height if unit_ptr.device.type == "cpu" else 0, (height, width)


def linear(kernel: str, x: Tensor, rows: int, nnz: int, block: Block = (1, 1)) -> KernelChoice:
    """The kernel for a sparse [rows, x.shape[1]] weight applied to x [batch, cols]."""
    return choose_linear(kernel, x.device.type, x.dtype, x.shape[0], (rows, x.shape[1]), nnz, block)


def linear_grad(kernel: str, dy: Tensor, cols: int, nnz: int, block: Block = (1, 1)) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, rows]."""
    return choose_linear(kernel, dy.device.type, dy.dtype, dy.shape[0], (dy.shape[1], cols), nnz, block)


def convolution(
    kernel: str, x: Tensor, shape: tuple[int, ...], window: Window, nnz: int, block: Block = (1, 1)
) -> KernelChoice:
    """The kernel for a sparse weight of dense `shape` applied to x [batch, channels, height, width]."""
    size = window.output_size(x.shape[2], x.shape[3])
    return choose_convolution(kernel, x.device.type, x.dtype, x.shape[0], size, shape, window, nnz, block)


def convolution_grad(
    kernel: str, dy: Tensor, shape: tuple[int, ...], window: Window, nnz: int, block: Block = (1, 1)
) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, out, out_height, out_width]."""
    size = (dy.shape[2], dy.shape[3])
    return choose_convolution(kernel, dy.device.type, dy.dtype, dy.shape[0], size, shape, window, nnz, block)


@lru_cache(maxsize=4096)
def choose_linear(
    kernel: str,
    device: str,
    dtype: torch.dtype,
    batch: int,
    shape: tuple[int, int],
    nnz: int,
    block: Block = (1, 1),
) -> KernelChoice:
    """The kernel for a linear layer; `dtype` is the input's, `block` what a kernel multiplies at once.

    Raises:
        ValueError: `kernel` names a kernel that cannot run on this device or in this precision.
    """
    return _settled(kernel, device, dtype, block) or cost.choose(cost.linear(batch, shape, nnz))


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
    block: Block = (1, 1),
) -> KernelChoice:
    """The kernel for a convolution with outputs of `size`; `dtype` and `block` as for `choose_linear`.

    Raises:
        ValueError: `kernel` names a kernel that cannot run on this device or in this precision.
    """
    return _settled(kernel, device, dtype, block) or cost.choose(cost.convolution(batch, size, shape, window, nnz))


def _settled(kernel: str, device: str, dtype: torch.dtype, block: Block) -> KernelChoice | None:
    """The choice where there is none to make."""
    if dtype == torch.float64:
        if kernel == "native":
            raise ValueError("expected float32 input for kernel 'native', got float64, try kernel = 'auto'")
        return KernelChoice("reference", "float64 takes the reference path")
    if block[0] == 1 < block[1] and kernel in ("auto", "native"):
        return KernelChoice("native", "a dense product over the stored outputs alone")
    if device != "cpu":
        if kernel == "native":
            raise ValueError(f"expected a CPU tensor for kernel 'native', got {device}, try kernel = 'auto'")
        return KernelChoice("dense" if kernel == "auto" else kernel, f"no sparse kernel for {device} in this build")
    return None if kernel == "auto" else KernelChoice(kernel, "forced by layer.kernel")
