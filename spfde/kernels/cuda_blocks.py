"""The kernel "cuda" for weights in blocks: products on tensor cores in CUDA C++ (csrc/cuda/block_*.cu).

They walk the tiles that the Triton kernels walk, and take the blocks that those take; see `spfde.sparse.tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels.dtypes import name_of
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.gpu import Gpu, gpu_at, queue_of
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


def _product(
    x: Tensor, values: Tensor, bias: Tensor | None, tiles: Tiles, outer: int, transposed: bool, flags: str
) -> Tensor:
    """y [batch, outer] = X W^T + bias, or X W if `transposed`. flags: the op whose TF32 flag holds."""
    x = x.contiguous()
    y = x.new_empty(len(x), outer)
    sizes = (outer, x.shape[1], len(x), *values.shape[1:], transposed, _fields(tiles))
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
    sizes = (rows, cols, batch, *block, len(dvalues), _fields(index.tiles))
    units, dtype = gpu_at(x.device).units, name_of(x.dtype)
    scratch = x.new_empty(native().cuda_block_sddmm_scratch(*sizes, dtype, units), dtype=torch.uint8)
    native().cuda_block_sddmm(
        *sizes, index.row_ptr[-1:].data_ptr(), dy.data_ptr(), x.data_ptr(), dvalues.data_ptr(),
        dbias.data_ptr() if bias else 0, dtype, uses_tf32(flags), units, scratch.data_ptr(), *queue_of(x),
    )  # fmt: skip
    return dvalues, dbias


def _fields(tiles: Tiles) -> list[int]:
    """The fields of the core's `Tiles` (csrc/include/spfde/tiles.h)."""
    lists = (tiles.entry, tiles.work, tiles.split)
    return [tiles.together, *(number for each in lists for number in (each.data_ptr(), len(each)))]


def hindrance(problem: Problem, gpu: Gpu | None) -> str | None:
    """Why a weight in blocks has no CUDA C++ kernel on a GPU, or None."""
    if problem.op != "linear":
        return "CUDA C++ kernels for blocks are for linear layers, not for convolutions"
    if reason := model.hindrance(problem.block, problem.window):
        return f"CUDA C++ kernels: {reason}"
    if gpu is not None and gpu.capability < OLDEST:
        wanted, found = ("{}.{}".format(*capability) for capability in (OLDEST, gpu.capability))
        return f"CUDA C++ kernels for blocks need compute capability {wanted}, this GPU has {found}"
    return None


def predict(problem: Problem, dtype: torch.dtype, gpu: Gpu) -> Prediction:
    """By the model of the Triton kernels, less what is assumed to be lost on this GPU's matrix unit."""
    gain = OF_TRITON[gpu.matrix_unit] * model.gain(problem, dtype, gpu)
    reason = f"predicted {gain:.1f}x the masked dense product at density {problem.density:.2f}, not measured"
    return Prediction(gain, gain >= model.MARGIN, reason)
