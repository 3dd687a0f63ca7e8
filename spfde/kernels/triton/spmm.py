"""y = X W^T for a weight in blocks: tokens on the rows of the matrix unit, the stored blocks of a group summed up.

The input gradient is the same product over the transposed tiles, each block read with its sides swapped.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.epilogue import PLAIN, Epilogue
from spfde.kernels.gpu import gpu_at
from spfde.kernels.triton import config
from spfde.kernels.triton.epilogue import finish
from spfde.kernels.triton.index import TileIndex
from spfde.kernels.triton.launch import exact, launch, precision, upcast
from spfde.kernels.triton.tuned import launch_of
from spfde.kernels.triton.walk import block_of, entry_of
from spfde.sparse.tiles import Tiles


@triton.jit
def spmm_kernel(x, values, entry, work, scale, bias, residual, kept, y, scratch, batch, inner, outer, stride_x,
                stride_r, items, pitch, OUT: tl.constexpr, IN: tl.constexpr, TOGETHER: tl.constexpr,
                TRANSPOSED: tl.constexpr, DENSE: tl.constexpr, RAGGED: tl.constexpr, SCALE: tl.constexpr,
                BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr,
                PRECISION: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr,
                DEPTH: tl.constexpr):  # fmt: skip
    """One item of work on one tile of tokens; a block is OUT x IN in the direction of the product.

    Items vary fastest: programs that run at the same time read the same tokens. DEPTH inputs are multiplied at once:
    part of a block, or several blocks of one row side by side. WIDE: 32 bits do not count the values.
    """
    OUTPUTS: tl.constexpr = OUT * TOGETHER
    STACK: tl.constexpr = DEPTH // IN if DEPTH > IN else 1
    PARTS: tl.constexpr = IN // DEPTH if DEPTH < IN else 1
    item = tl.program_id(0) % items
    tile = tl.program_id(0) // items
    group = tl.load(work + item * 4)
    if group < 0:
        return
    first = tl.load(work + item * 4 + 1)
    last = tl.load(work + item * 4 + 2)
    part_of = tl.load(work + item * 4 + 3)
    lane = tl.arange(0, TOKENS)
    n = tl.arange(0, OUTPUTS)
    k = tl.arange(0, DEPTH)
    token = tile * TOKENS + lane
    output = group * OUTPUTS + n
    x += tile.to(tl.int64) * TOKENS * stride_x
    acc = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for step in range(0, tl.cdiv(last - first, STACK) * PARTS):
        at, column, slot, inside = entry_of(entry, first, step, k, IN, TOGETHER, STACK, PARTS, DEPTH)
        feature = column * IN + inside
        mask = (token < batch)[:, None]
        if STACK > 1:
            mask = mask & (slot >= 0)[None, :]
        if RAGGED:
            mask = mask & (feature < inner)[None, :]
        rows = tl.load(x + lane[:, None] * stride_x + feature[None, :], mask=mask, other=0.0)
        if DENSE:
            if TRANSPOSED:
                place = feature.to(tl.int64)[:, None] * pitch + output[None, :]
            else:
                place = output.to(tl.int64)[None, :] * pitch + feature[:, None]
            if RAGGED:
                block = tl.load(values + place, mask=(feature < inner)[:, None] & (output < outer)[None, :], other=0.0)
            else:
                block = tl.load(values + place)
        else:
            block = block_of(values, at, slot, inside, n, OUT, IN, TOGETHER, STACK, TRANSPOSED, WIDE)
        if UPCAST:
            rows = rows.to(tl.float32)
            block = block.to(tl.float32)
        acc = tl.dot(rows, block, acc, input_precision=PRECISION)
    if part_of < 0:
        finish(acc, scale, bias, residual, kept, y, token.to(tl.int64), token < batch, group * OUTPUTS, outer, stride_r,
               SCALE, BIAS, RESIDUAL, KEEP, ACT, TOKENS, OUTPUTS)  # fmt: skip
    else:
        place = (part_of.to(tl.int64) * batch + token)[:, None] * OUTPUTS + n[None, :]
        tl.store(scratch + place, acc, mask=(token < batch)[:, None])


@triton.jit
def join_kernel(scratch, split, scale, bias, residual, kept, y, batch, outer, stride_r, OUTPUTS: tl.constexpr,
                SCALE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr,
                TOKENS: tl.constexpr):  # fmt: skip
    """Adds the parts of a group that was cut, in order: the same bits in every run."""
    cut = tl.program_id(1)  # tokens on the first axis: the others end at 65535 programs
    group = tl.load(split + cut * 3)
    if group < 0:
        return
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    n = tl.arange(0, OUTPUTS)
    acc = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for part in range(tl.load(split + cut * 3 + 1), tl.load(split + cut * 3 + 2)):
        place = (tl.full((), part, tl.int64) * batch + token)[:, None] * OUTPUTS + n[None, :]
        acc += tl.load(scratch + place, mask=(token < batch)[:, None], other=0.0)
    finish(acc, scale, bias, residual, kept, y, token.to(tl.int64), token < batch, group * OUTPUTS, outer, stride_r,
           SCALE, BIAS, RESIDUAL, KEEP, ACT, TOKENS, OUTPUTS)  # fmt: skip


def forward(
    x: Tensor, weights: Tensor, epilogue: Epilogue, index: TileIndex, rows: int, flags: str = "linear"
) -> Tensor:
    """y [batch, rows] = epilogue(X W^T); weights: blocks [capacity, R, C], or the dense weight [rows, cols]."""
    return product(x, weights, index.tiles, rows, False, epilogue, flags)


def input_grad(dy: Tensor, weights: Tensor, index: TileIndex, cols: int, flags: str = "linear") -> Tensor:
    """dX [batch, cols] = dY W."""
    return product(dy, weights, index.t_tiles, cols, True, flags=flags)


def product(
    x: Tensor,
    weights: Tensor,
    tiles: Tiles,
    outer: int,
    transposed: bool,
    epilogue: Epilogue = PLAIN,
    flags: str = "linear",
) -> Tensor:
    """y [batch, outer] = epilogue(X W^T), or of X W if `transposed`.

    x: [batch, inner]. weights: blocks [capacity, R, C], or a dense weight whose tiles of 64x64 `tiles` names. flags:
    the op whose TF32 flag holds, see `precision`.
    """
    dense = weights.dim() == 2
    height, width = (config.TILE, config.TILE) if dense else weights.shape[1:]
    out, into = (width, height) if transposed else (height, width)
    if x.stride(-1) != 1 or config.MOST_TOKENS * x.stride(0) >= 2**31:  # 32 bits count what a tile's tokens span
        x = x.contiguous()
    batch, inner = x.shape
    residual = epilogue.residual
    if residual is not None and residual.stride(-1) != 1:
        residual = residual.contiguous()
    y = x.new_empty(batch, outer, dtype=epilogue.result(x.dtype))
    outputs, together = out * tiles.together, tiles.together
    gpu, kind, shape = gpu_at(x.device), (x.dtype, batch), (inner, outer) if transposed else (outer, inner)
    no_tf32 = exact(x.dtype, flags)
    op, layout = "input_grad" if transposed else "forward", "masked" if dense else "linear"
    how = launch_of(op, gpu, layout, (height, width), outputs, *kind, shape, no_tf32)
    how = how or config.product_config(gpu, outputs, into, together, *kind, no_tf32)
    scratch = x.new_empty(tiles.scratch, batch, outputs, dtype=torch.float32)
    stride = 0 if residual is None else residual.stride(0)
    items, count = tiles.work.shape[0], triton.cdiv(batch, how.tokens)
    ends = (epilogue.scale, epilogue.bias, residual, epilogue.pre_act_out, y)
    launch(
        spmm_kernel, (items * count,), x, weights, tiles.entry, tiles.work, *ends, scratch, batch, inner, outer,
        x.stride(0), stride, items, weights.stride(0), OUT=out, IN=into, TOGETHER=together, TRANSPOSED=transposed,
        DENSE=dense, RAGGED=inner % into != 0 or (dense and outer % out != 0), **epilogue.constants,
        PRECISION=precision(x.dtype, flags), UPCAST=upcast(x.dtype), WIDE=weights.numel() >= 2**31, TOKENS=how.tokens,
        DEPTH=how.depth, config=how,
    )  # fmt: skip
    launch(
        join_kernel, (triton.cdiv(batch, 32), tiles.split.shape[0]), scratch, tiles.split, *ends, batch, outer,
        stride, OUTPUTS=outputs, **epilogue.constants, TOKENS=32, config=how,
    )  # fmt: skip
    return y
