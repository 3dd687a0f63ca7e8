"""Which kernel runs: a pure function of the problem, so that two runs and a resumed run give the same bits.

`kernel` is "auto" (the cost model), a kernel's name (forced), or the name of a table of measurements in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels.dispatch import cost, in_use
from spfde.kernels.dispatch.problem import KERNELS, SPARSE, KernelChoice, Problem, bucket_of
from spfde.kernels.dispatch.table import Table
from spfde.kernels.triton import model, why_not
from spfde.kernels.triton.launch import gpu_here
from spfde.sparse.plan import Units, Window


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


def stored(index: Units, block: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """The number of stored weights, on a GPU of those there is room for (reading it would wait), and the block."""
    height, width = block
    units = int(index.row_ptr[-1]) if index.row_ptr.device.type == "cpu" else index.col.numel()
    return units * height, (height, width)


def choose(problem: Problem, isa: str, table: Table | None = None) -> KernelChoice:
    """The fastest kernel the table has measured for the problem, else the one the cost model predicts."""
    if measured := _measured(table, problem):
        return measured
    ratio = cost.ratio(problem, cost.constants(problem.op, isa))
    gain = f"predicted {1 / ratio:.1f}x the dense product at density {problem.density:.2f}"
    unmeasured = f" (not in table {table.name})" if table else ""
    return KernelChoice("native" if ratio < cost.TIE * cost.masked(problem) else "dense", gain + unmeasured, problem)


def _measured(table: Table | None, problem: Problem) -> KernelChoice | None:
    """What a table says of the problem, if anything."""
    measured = None if table is None else table.measured(problem)
    if measured is None:
        return None
    gain = f"measured {measured.speedup:.1f}x the masked dense product at density {measured.density:.2f}"
    return KernelChoice(measured.kernel, f"{gain} (table {table.name})", problem)


def linear(kernel: str, x: Tensor, rows: int, nnz: int, block: tuple[int, int] = (1, 1)) -> KernelChoice:
    """The kernel for a sparse [rows, x.shape[1]] weight applied to x [batch, cols]."""
    batch, cols = x.shape
    return choose_linear(kernel, x.device.type, x.dtype, batch, (rows, cols), nnz, block)


def linear_grad(kernel: str, dy: Tensor, cols: int, nnz: int, block: tuple[int, int] = (1, 1)) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, rows]."""
    batch, rows = dy.shape
    return choose_linear(kernel, dy.device.type, dy.dtype, batch, (rows, cols), nnz, block)


def convolution(
    kernel: str, x: Tensor, shape: tuple[int, ...], window: Window, nnz: int, block: tuple[int, int] = (1, 1)
) -> KernelChoice:
    """The kernel for a sparse weight of dense `shape` applied to x [batch, channels, height, width]."""
    batch, _, height, width = x.shape
    size = window.output_size(height, width)
    return choose_convolution(kernel, x.device.type, x.dtype, batch, size, shape, window, nnz, block)


def convolution_grad(
    kernel: str, dy: Tensor, shape: tuple[int, ...], window: Window, nnz: int, block: tuple[int, int] = (1, 1)
) -> KernelChoice:
    """The same choice, seen from the gradient dy [batch, out, out_height, out_width]."""
    batch, _, *size = dy.shape
    return choose_convolution(kernel, dy.device.type, dy.dtype, batch, tuple(size), shape, window, nnz, block)


@lru_cache(maxsize=4096)
def choose_linear(
    kernel: str,
    device: str,
    dtype: torch.dtype,
    batch: int,
    shape: tuple[int, int],
    nnz: int,
    block: tuple[int, int] = (1, 1),
) -> KernelChoice:
    """The kernel for a linear layer; `dtype` is the input's, `nnz` counts stored weights.

    Raises:
        ValueError: `kernel` names none, or one that cannot run on this device or in this precision.
    """
    problem = Problem(batch, shape, bucket_of(nnz, prod(shape)), block, dtype=_precision(device, dtype))
    return _choose(kernel, device, dtype, problem)


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
    block: tuple[int, int] = (1, 1),
) -> KernelChoice:
    """The kernel for a convolution with outputs of `size`; `dtype` is the input's, `nnz` counts stored weights.

    Raises:
        ValueError: `kernel` names none, or one that cannot run on this device or in this precision.
    """
    problem = Problem(batch, shape, bucket_of(nnz, prod(shape)), block, window, size, _precision(device, dtype))
    return _choose(kernel, device, dtype, problem)


def _precision(device: str, dtype: torch.dtype) -> str:
    return "float32" if device == "cpu" else str(dtype).removeprefix("torch.")


def forget() -> None:
    """Lets every choice be made anew: the tables in use have changed."""
    choose_linear.cache_clear()
    choose_convolution.cache_clear()


def _check_triton(device: str, problem: Problem) -> None:
    """Raises ValueError if no Triton kernel runs on this device or for this layer."""
    if reason := _why_no_triton(device, problem):
        raise ValueError(f"expected Triton to run for kernel 'triton', got: {reason}, try kernel = 'auto'")


def _why_no_triton(device: str, problem: Problem) -> str | None:
    return why_not(device) or (None if problem.op == "linear" else model.hindrance(problem.block, problem.window))


def candidates(device: str, dtype: torch.dtype, problem: Problem) -> tuple[str, ...]:
    """The kernels among which measuring can choose: none where only one can run, or where no choice is made."""
    if dtype == torch.float64:
        return ()
    if device == "cpu":
        return "native", "dense"  # "reference" is never the fastest
    whole = problem.block[0] == 1 < problem.block[1]
    return () if whole or _why_no_triton(device, problem) else ("triton", "dense")


def _choose(kernel: str, device: str, dtype: torch.dtype, problem: Problem) -> KernelChoice:
    free = kernel == "auto" or in_use.names_table(kernel)
    if not free:
        check_kernel(kernel)
    gpu = None if device == "cpu" else gpu_here()
    table = in_use.table_of(kernel, "" if device == "cpu" else gpu and gpu.name)
    if dtype == torch.float64:
        if kernel in SPARSE:
            raise ValueError(f"expected float32 input for kernel {kernel!r}, got float64, try kernel = 'auto'")
        return KernelChoice("reference", "float64 takes the reference path", problem)
    if problem.block[0] == 1 < problem.block[1] and (free or kernel == "native"):
        return KernelChoice("native", "a dense product over the stored outputs alone", problem)
    if kernel == "triton":
        _check_triton(device, problem)
    if device != "cpu":
        if kernel == "native":
            raise ValueError(f"expected a CPU tensor for kernel 'native', got {device}, try kernel = 'auto'")
        if free:
            measured = _measured(table, problem) if candidates(device, dtype, problem) else None
            return measured or model.choose(problem, dtype, why_not(device), gpu)
    return choose(problem, native().isa(), table) if free else KernelChoice(kernel, "forced by layer.kernel", problem)
