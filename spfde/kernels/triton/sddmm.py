"""dW = dY^T X at the stored blocks, with the bias gradient in the same launch.

A program holds a chunk of a group: blocks of the same rows side by side, so that small blocks fill the matrix unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.gpu import gpu_at
from spfde.kernels.triton import config
from spfde.kernels.triton.index import TileIndex
from spfde.kernels.triton.launch import exact, launch, precision, upcast
from spfde.kernels.triton.tuned import launch_of
from spfde.kernels.triton.walk import store_blocks, store_sums
from spfde.sparse.tiles import stack_of

LANES = 1024
REDUCE = config.Config(LANES, 1, 4, 1)


@triton.jit
def sddmm_kernel(
    dy, x, entry, out, sums, batch, rows, cols, stride_dy, stride_x, blocks, steps,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr, STACK: tl.constexpr, RAGGED: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One chunk of entries over `steps` x DEPTH tokens; out [parts, blocks, HEIGHT, WIDTH], sums [parts, rows]."""
    INPUTS: tl.constexpr = STACK * WIDTH
    OUTPUTS: tl.constexpr = TOGETHER * HEIGHT
    FIELDS: tl.constexpr = 2 + TOGETHER
    chunk = entry + tl.program_id(0) * STACK * FIELDS
    part = tl.program_id(1).to(tl.int64)
    group = tl.load(chunk + 1)
    if group < 0:
        return
    m = tl.arange(0, INPUTS)
    n = tl.arange(0, OUTPUTS)
    lane = tl.arange(0, DEPTH)
    at = chunk + m // WIDTH * FIELDS
    feature = tl.max_constancy(tl.load(at), WIDTH) * WIDTH + m % WIDTH
    output = group * OUTPUTS + n
    begin = part * steps * DEPTH
    acc = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    if tl.max(tl.load(chunk + 2 + tl.arange(0, TOGETHER)), 0) >= 0:  # an empty group has one empty chunk
        for step in range(0, steps):
            token = begin + step * DEPTH + lane
            mask_x = (token < batch)[None, :]
            mask_dy = (token < batch)[:, None]
            if RAGGED:
                mask_x = mask_x & (feature < cols)[:, None]
                mask_dy = mask_dy & (output < rows)[None, :]
            a = tl.load(x + feature[:, None] + token[None, :] * stride_x, mask=mask_x, other=0.0)
            b = tl.load(dy + token[:, None] * stride_dy + output[None, :], mask=mask_dy, other=0.0)
            if UPCAST:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    store_blocks(acc, out, at, part, blocks, m, n, HEIGHT, WIDTH, TOGETHER, ADD)
    before = tl.load(chunk + 1 - STACK * FIELDS, mask=tl.program_id(0) > 0, other=-1)
    if BIAS and before != group:  # the first chunk of its group: dY is still near
        store_sums(dy, sums, part, output, batch, rows, stride_dy, steps, OUTPUTS, DEPTH)


@triton.jit
def reduce_kernel(partial, out, size, parts, ADD: tl.constexpr, LANES: tl.constexpr):
    """Writes the sum of `parts` partial results, in order, on top of what is there if ADD."""
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    acc = tl.zeros((LANES,), tl.float32)
    if ADD:
        acc += tl.load(out + at, mask=at < size, other=0.0).to(tl.float32)
    for part in range(parts):
        acc += tl.load(partial + tl.full((), part, tl.int64) * size + at, mask=at < size, other=0.0)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=at < size)


def weight_grad(
    dy: Tensor,
    x: Tensor,
    index: TileIndex,
    block: Sequence[int],
    bias: bool,
    out: Tensor | None = None,
    flags: str = "linear",
) -> tuple[Tensor, Tensor]:
    """The weight gradient [capacity, R, C] at the stored blocks, 0 in dead slots, and the bias gradient (else empty).

    dy: [batch, rows]. x: [batch, cols]. out: an existing gradient to add to; it is returned. flags: the op whose TF32
    flag holds, see `precision`.
    """
    (height, width), tiles = block, index.tiles
    dy, x = (t if t.stride(-1) == 1 else t.contiguous() for t in (dy, x))
    (batch, rows), cols = dy.shape, x.shape[1]
    blocks = index.places.numel() // (height * width)
    gpu, outputs, stack = gpu_at(x.device), height * tiles.together, stack_of(width)
    no_tf32 = exact(x.dtype, flags)
    how = launch_of("weight_grad", gpu, "linear", (height, width), outputs, x.dtype, batch, (rows, cols), no_tf32)
    how = how or config.weight_grad_config(gpu, outputs, width, x.dtype, no_tf32)
    chunks = tiles.entry.shape[0] // stack
    parts = config.parts(gpu, chunks, batch, how.depth)

    def run(dvalues: Tensor, dbias: Tensor, add: bool) -> None:
        launch(
            sddmm_kernel, (chunks, parts), dy, x, tiles.entry, dvalues, dbias, batch, rows, cols, dy.stride(0),
            x.stride(0), blocks, triton.cdiv(batch, parts * how.depth), HEIGHT=height, WIDTH=width,
            TOGETHER=tiles.together, STACK=stack, RAGGED=rows % outputs != 0 or cols % width != 0, BIAS=bias, ADD=add,
            PRECISION=precision(x.dtype, flags), UPCAST=upcast(x.dtype), DEPTH=how.depth, config=how,
        )  # fmt: skip

    dvalues = x.new_zeros(blocks, height, width) if out is None else out
    return in_parts(run, parts, dvalues, x.new_empty(rows if bias else 0), out is not None)


def in_parts(
    run: Callable[[Tensor, Tensor, bool], None], parts: int, dvalues: Tensor, dbias: Tensor, add: bool
) -> tuple[Tensor, Tensor]:
    """The gradients after `run`, which writes `parts` results one after the other and may add to what is there."""
    if parts == 1:
        run(dvalues, dbias, add)
        return dvalues, dbias
    partial = dvalues.new_zeros(parts, *dvalues.shape, dtype=torch.float32)
    sums = dbias.new_empty(parts, dbias.numel(), dtype=torch.float32)
    run(partial, sums, False)
    for part, total, on_top in ((partial, dvalues, add), (sums, dbias, False)):
        size = total.numel()
        launch(
            reduce_kernel, (triton.cdiv(size, LANES),), part, total, size, parts, ADD=on_top, LANES=LANES,
            config=REDUCE,
        )  # fmt: skip
    return dvalues, dbias
