"""The kernel "cuda" for weights in blocks: products on tensor cores in CUDA C++ (csrc/cuda/block_*.cu).

Linear layers, and convolutions by the same products over pixels, in channels_last memory; any other is copied there and
the result back. Pointwise convolutions of stride 1 are linear layers of their pixels.

They walk the tiles that the Triton kernels walk, and take the blocks that those take; see `spfde.sparse.tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels.cuda_arguments import conv2d_shape, tile_fields
from spfde.kernels.dtypes import name_of
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.gpu import Gpu, gpu_at, queue_of
from spfde.kernels.memory_format import images_of, memory_format_of, pixels_of
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Prediction, Product
from spfde.kernels.triton import model
from spfde.kernels.triton.index import TileIndex
from spfde.kernels.triton.launch import uses_tf32
from spfde.sparse.kernel_index import slots
from spfde.sparse.tiles import Tiles

OLDEST = (8, 0)  # compute capability that has the instructions
# Assumed: what they gain of what is predicted for the Triton kernels, by the matrix unit that those use (theirs is
# always "mma"). Below 1, so that Triton is taken where both can run.
OF_TRITON = {"mma": 0.8, "wgmma": 0.5, "tcgen05": 0.3}


class BlockLinear(Product):
    """x is [batch, features]."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: TileIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        return _product(x, values, bias, index.tiles, problem.shape[0], False, "linear")

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: TileIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        return _product(dy, values, None, index.t_tiles, problem.shape[1], True, "linear")

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        return _weight_grad(dy, x, index, block, bias, "linear")


class BlockConv2d(Product):
    """Results have the memory format of what they are made of."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: TileIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        if problem.window.linear:
            y = _product(pixels_of(x), values, bias, index.tiles, problem.shape[0], False, "conv2d")
            y = images_of(y, x)
        else:
            y = _conv2d(x, values, bias, index.tiles, problem, x.shape, False)
        return y.contiguous(memory_format=memory_format_of(x))

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: TileIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        if problem.window.linear:
            dx = _product(pixels_of(dy), values, None, index.t_tiles, problem.shape[1], True, "conv2d")
            dx = images_of(dx, dy)
        else:
            dx = _conv2d(dy, values, None, index.t_tiles, problem, size, True)
        return dx.contiguous(memory_format=memory_format_of(dy))

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        if problem.window.linear:
            return _weight_grad(pixels_of(dy), pixels_of(x), index, block, bias, "conv2d")
        dy, x = (t.contiguous(memory_format=torch.channels_last) for t in (dy, x))
        dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(problem.shape[0] if bias else 0)
        sizes = (conv2d_shape(x.shape, problem), *block, len(dvalues), tile_fields(index.tiles))
        units, dtype = gpu_at(x.device).units, name_of(x.dtype)
        room = native().cuda_block_conv2d_weight_grad_scratch(*sizes, dtype, units)
        scratch = x.new_empty(room, dtype=torch.uint8)
        native().cuda_block_conv2d_weight_grad(
            *sizes, index.row_ptr[-1:].data_ptr(), dy.data_ptr(), x.data_ptr(), dvalues.data_ptr(),
            dbias.data_ptr() if bias else 0, dtype, uses_tf32("conv2d"), units, scratch.data_ptr(), *queue_of(x),
        )  # fmt: skip
        return dvalues, dbias


def _conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    tiles: Tiles,
    problem: Problem,
    size: Sequence[int],
    transposed: bool,
) -> Tensor:
    """The output for inputs x of a size or, if `transposed`, the input gradient for x = dY."""
    x = x.contiguous(memory_format=torch.channels_last)
    shape = tuple(size) if transposed else (len(x), problem.shape[0], *problem.size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    native().cuda_block_conv2d(
        conv2d_shape(size, problem), *values.shape[1:], transposed, tile_fields(tiles), values.data_ptr(),
        0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), name_of(x.dtype), uses_tf32("conv2d"),
        *queue_of(x),
    )  # fmt: skip
    return y


def _product(
    x: Tensor, values: Tensor, bias: Tensor | None, tiles: Tiles, outer: int, transposed: bool, flags: str
) -> Tensor:
    """y [batch, outer] = X W^T + bias, or X W if `transposed`. flags: the op whose TF32 flag holds."""
    x = x.contiguous()
    y = x.new_empty(len(x), outer)
    sizes = (outer, x.shape[1], len(x), *values.shape[1:], transposed, tile_fields(tiles))
    scratch = x.new_empty(native().cuda_block_spmm_scratch(*sizes), dtype=torch.uint8)
    native().cuda_block_spmm(
        *sizes, values.data_ptr(), 0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(),
        name_of(x.dtype), uses_tf32(flags), scratch.data_ptr(), *queue_of(x),
    )  # fmt: skip
    return y


def _weight_grad(
    dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], bias: bool, flags: str
) -> tuple[Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    (batch, rows), cols = dy.shape, x.shape[1]
    dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(rows if bias else 0)
    sizes = (rows, cols, batch, *block, len(dvalues), tile_fields(index.tiles))
    units, dtype = gpu_at(x.device).units, name_of(x.dtype)
    scratch = x.new_empty(native().cuda_block_sddmm_scratch(*sizes, dtype, units), dtype=torch.uint8)
    native().cuda_block_sddmm(
        *sizes, index.row_ptr[-1:].data_ptr(), dy.data_ptr(), x.data_ptr(), dvalues.data_ptr(),
        dbias.data_ptr() if bias else 0, dtype, uses_tf32(flags), units, scratch.data_ptr(), *queue_of(x),
    )  # fmt: skip
    return dvalues, dbias


def too_old(gpu: Gpu | None) -> str | None:
    """Why a GPU cannot run them, or None."""
    if gpu is None or gpu.capability >= OLDEST:
        return None
    wanted, found = ("{}.{}".format(*capability) for capability in (OLDEST, gpu.capability))
    return f"blocks need compute capability {wanted}, this GPU has {found}"


def predict(problem: Problem, dtype: torch.dtype, gpu: Gpu) -> Prediction:
    """By the model of the Triton kernels, less what is assumed to be lost on this GPU's matrix unit."""
    gain = OF_TRITON[gpu.matrix_unit] * model.gain(problem, dtype, gpu)
    reason = f"predicted {gain:.1f}x the masked dense product at density {problem.density:.2f}, not measured"
    return Prediction(gain, gain >= model.MARGIN, reason)
