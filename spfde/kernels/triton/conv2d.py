"""conv2d on a GPU: implicit products over (tap, channel block) lists, channels last, pixels on the MMA's M axis.

Tiles are walked as in a linear layer (see spmm.py, sddmm.py), a block's column being channel block x taps + tap; what
differs is where the pixels lie that a tap meets. For the input gradient the columns are output block x taps + tap, and
the rows channel blocks by stride residue: pixels of one residue meet the same taps, so that a stride leaves nothing to
skip, and every input pixel is written once.

No atomics: every sum has one order, whatever the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.dispatch.measurement import kind_of
from spfde.kernels.epilogue import PLAIN, Epilogue
from spfde.kernels.gpu import gpu_at
from spfde.kernels.memory_format import images_of, pixels_of
from spfde.kernels.triton import config, sddmm, spmm
from spfde.kernels.triton.epilogue import finish
from spfde.kernels.triton.index import TileIndex
from spfde.kernels.triton.launch import exact, launch, precision, upcast
from spfde.kernels.triton.tuned import launch_of
from spfde.kernels.triton.walk import block_of, entry_of, store_blocks, store_sums
from spfde.sparse.kernel_index import Window
from spfde.sparse.tiles import Tiles, stack_of

Shape = tuple[int, ...]
FAR = tl.constexpr(-(2**30))  # above every image, whatever the tap


def reciprocal(divisor: int) -> tuple[int, int]:
    """(m, s) such that n // divisor = n m >> s for every n in [0, 2**31): a GPU has no instruction that divides."""
    bits = 31 + (divisor - 1).bit_length()
    return -(-(1 << bits) // divisor), bits


@triton.jit
def quotient(n, m, s):
    """The quotient n // divisor by its `reciprocal`, of which m fits 32 bits without a sign."""
    return ((n.to(tl.uint64) * m.to(tl.uint32).to(tl.uint64)) >> s.to(tl.uint64)).to(tl.int32)


@triton.jit
def conv2d_kernel(
    source, values, entry, work, scale, bias, residual, kept, result, items, positions, grid_h, grid_w, source_h,
    source_w, sources, result_h, result_w, results, pad_h, pad_w, dilation_h, dilation_w, KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    TOGETHER: tl.constexpr, TRANSPOSED: tl.constexpr, RAGGED: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One item of work on one tile of result pixels; a block is OUT x IN in the direction of the product.

    Items vary fastest: programs that run at the same time read the same pixels. grid_h, grid_w: result pixels of one
    stride residue in an image; positions: of all images. DEPTH channels are multiplied at once, as in `spmm_kernel`.
    """
    OUTPUTS: tl.constexpr = OUT * TOGETHER
    STACK: tl.constexpr = DEPTH // IN if DEPTH > IN else 1
    PARTS: tl.constexpr = IN // DEPTH if DEPTH < IN else 1
    item = tl.program_id(0) % items
    group = tl.load(work + item * 4)
    if group < 0:
        return
    first = tl.load(work + item * 4 + 1)
    last = tl.load(work + item * 4 + 2)
    pixel = tl.program_id(0) // items * PIXELS + tl.arange(0, PIXELS)
    image, place = pixel // (grid_h * grid_w), pixel % (grid_h * grid_w)
    i, j = place // grid_w, place % grid_w
    if TRANSPOSED:  # groups of the first residue, then of the next
        residue, group = group // tl.cdiv(results, OUTPUTS), group % tl.cdiv(results, OUTPUTS)
        phase_h, phase_w = residue // STRIDE_W, residue % STRIDE_W
        at_h = i * STRIDE_H + ((phase_h - pad_h) % STRIDE_H + STRIDE_H) % STRIDE_H
        at_w = j * STRIDE_W + ((phase_w - pad_w) % STRIDE_W + STRIDE_W) % STRIDE_W
        from_h, from_w = (at_h + pad_h - phase_h) // STRIDE_H, (at_w + pad_w - phase_w) // STRIDE_W
    else:
        phase_h, phase_w = 0, 0
        at_h, at_w = i, j
        from_h, from_w = i * STRIDE_H - pad_h, j * STRIDE_W - pad_w
    wanted = (pixel < positions) & (at_h < result_h) & (at_w < result_w)
    high = tl.where(wanted, from_h, FAR)
    base = source + ((image.to(tl.int64) * source_h + from_h) * source_w + from_w)[:, None] * sources
    n = tl.arange(0, OUTPUTS)
    k = tl.arange(0, DEPTH)
    acc = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for step in range(0, tl.cdiv(last - first, STACK) * PARTS):
        at, column, slot, inside = entry_of(entry, first, step, k, IN, TOGETHER, STACK, PARTS, DEPTH)
        tap, channel = column % TAPS, column // TAPS * IN + inside
        if TRANSPOSED:
            move_h = -((tap // KERNEL_W * dilation_h - phase_h) // STRIDE_H)
            move_w = -((tap % KERNEL_W * dilation_w - phase_w) // STRIDE_W)
        else:
            move_h, move_w = tap // KERNEL_W * dilation_h, tap % KERNEL_W * dilation_w
        move = (move_h * source_w + move_w) * sources + channel
        if STACK > 1:  # several taps side by side
            move_h, move_w = move_h[None, :], move_w[None, :]
        h, w = (high[:, None] + move_h).to(tl.uint32), (from_w[:, None] + move_w).to(tl.uint32)
        mask = (h < source_h) & (w < source_w)  # what is below 0 is far above
        if STACK > 1:
            mask = mask & (slot >= 0)[None, :]
        if RAGGED:
            mask = mask & (channel < sources)[None, :]
        pixels = tl.load(base + move[None, :], mask=mask, other=0.0)
        block = block_of(values, at, slot, inside, n, OUT, IN, TOGETHER, STACK, TRANSPOSED, WIDE)
        if UPCAST:
            pixels, block = pixels.to(tl.float32), block.to(tl.float32)
        acc = tl.dot(pixels, block, acc, input_precision=PRECISION)
    row = (image.to(tl.int64) * result_h + at_h) * result_w + at_w
    finish(acc, scale, bias, residual, kept, result, row, wanted, group * OUTPUTS, results, results, SCALE, BIAS,
           RESIDUAL, KEEP, ACT, PIXELS, OUTPUTS)  # fmt: skip


@triton.jit(do_not_specialize=["area_m", "area_s", "row_m", "row_s"])
def conv2d_grad_kernel(
    dy, x, entry, out, sums, positions, outputs, blocks, steps, area, area_m, area_s, out_w, row_m, row_s, height,
    width, channels, pad_h, pad_w, dilation_h, dilation_w, KERNEL_W: tl.constexpr, TAPS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr,
    STACK: tl.constexpr, RAGGED: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """One chunk of entries over `steps` x DEPTH output pixels; out and sums as in `sddmm_kernel`."""
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
    output = group * OUTPUTS + n
    before = tl.load(chunk + 1 - STACK * FIELDS, mask=tl.program_id(0) > 0, other=-1)
    if BIAS and before != group:  # the first chunk of its group; before the product, which needs the registers
        store_sums(dy, sums, part, output, positions, outputs, outputs, steps, OUTPUTS, DEPTH)
    at = chunk + m // WIDTH * FIELDS
    column = tl.max_constancy(tl.load(at), WIDTH)
    tap, channel = column % TAPS, column // TAPS * WIDTH + m % WIDTH
    move_h, move_w = tap // KERNEL_W * dilation_h - pad_h, tap % KERNEL_W * dilation_w - pad_w
    move = ((move_h * width + move_w) * channels + channel)[:, None]
    acc = tl.zeros((INPUTS, OUTPUTS), tl.float32)
    if tl.max(tl.load(chunk + 2 + tl.arange(0, TOGETHER)), 0) >= 0:  # an empty group has one empty chunk
        for step in range(0, steps):
            pixel = ((part * steps + step) * DEPTH).to(tl.int32) + tl.arange(0, DEPTH)
            image = quotient(pixel, area_m, area_s)
            place = pixel - image * area
            i = quotient(place, row_m, row_s)
            at_h, at_w = i * STRIDE_H, (place - i * out_w) * STRIDE_W
            base = ((image.to(tl.int64) * height + at_h) * width + at_w) * channels
            high = tl.where(pixel < positions, at_h, FAR)
            h = (high[None, :] + move_h[:, None]).to(tl.uint32)
            w = (at_w[None, :] + move_w[:, None]).to(tl.uint32)
            mask_x = (h < height) & (w < width)
            mask_dy = (pixel < positions)[:, None]
            if RAGGED:
                mask_x = mask_x & (channel < channels)[:, None]
                mask_dy = mask_dy & (output < outputs)[None, :]
            a = tl.load(x + base[None, :] + move, mask=mask_x, other=0.0)
            b = tl.load(dy + pixel.to(tl.int64)[:, None] * outputs + output[None, :], mask=mask_dy, other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    store_blocks(acc, out, at, part, blocks, m, n, HEIGHT, WIDTH, TOGETHER, False)


def forward(x: Tensor, values: Tensor, epilogue: Epilogue, index: TileIndex, shape: Shape, window: Window) -> Tensor:
    """y [batch, out, out_h, out_w] = epilogue(conv2d(x)), in channels_last memory.

    x: [batch, channels, height, width]. values: [capacity, R, C]. `pre_act_out` is in channels_last memory.
    """
    if window.linear:
        rest, kept = (t if t is None else pixels_of(t) for t in (epilogue.residual, epilogue.pre_act_out))
        epilogue = epilogue._replace(residual=rest, pre_act_out=kept)
        return images_of(spmm.forward(pixels_of(x), values, epilogue, index, shape[0], "conv2d"), x)
    size = window.output_size(*x.shape[2:])
    return _product(x, values, index.tiles, False, (shape[0], *size), size, window, epilogue)


def input_grad(dy: Tensor, values: Tensor, index: TileIndex, size: Shape, shape: Shape, window: Window) -> Tensor:
    """dX [batch, channels, *size] in channels_last memory."""
    if window.linear:
        return images_of(spmm.input_grad(pixels_of(dy), values, index, shape[1], "conv2d"), dy)
    grid = tuple(triton.cdiv(side, step) for side, step in zip(size, window.stride, strict=True))
    return _product(dy, values, index.t_tiles, True, (shape[1], *size), grid, window)


def _product(
    source: Tensor,
    values: Tensor,
    tiles: Tiles,
    transposed: bool,
    size: Shape,
    grid: Shape,
    window: Window,
    epilogue: Epilogue = PLAIN,
) -> Tensor:
    """The result [batch, *size]; grid: pixels of one stride residue in an image of it."""
    source, rest = _channels_last(source), epilogue.residual
    epilogue = epilogue._replace(residual=None if rest is None else _channels_last(rest))
    (height, width), together, dtype = values.shape[1:], tiles.together, source.dtype
    result = torch.empty(
        (len(source), *size), dtype=epilogue.result(dtype), device=source.device, memory_format=torch.channels_last
    )
    out, into = (width, height) if transposed else (height, width)
    positions, items = len(source) * prod(grid), tiles.work.shape[0]
    gpu, outputs, no_tf32 = gpu_at(source.device), out * together, exact(dtype, "conv2d")
    op, output_pixels, shape = _problem(source, result, transposed, prod(window.kernel))
    how = launch_of(op, gpu, kind_of(window), (height, width), outputs, dtype, output_pixels, shape, no_tf32)
    how = how or config.product_config(gpu, outputs, into, together, dtype, positions, no_tf32, "conv2d")
    launch(
        conv2d_kernel, (items * triton.cdiv(positions, how.tokens),), source, values, tiles.entry, tiles.work,
        epilogue.scale, epilogue.bias, epilogue.residual, epilogue.pre_act_out, result, items, positions, *grid,
        *source.shape[2:], source.shape[1], *size[1:], size[0], *_places(window), **_taps(window), OUT=out, IN=into,
        TOGETHER=together, TRANSPOSED=transposed, RAGGED=source.shape[1] % into != 0, **epilogue.constants,
        PRECISION=precision(dtype, "conv2d"), UPCAST=upcast(dtype), WIDE=values.numel() >= 2**31, PIXELS=how.tokens,
        DEPTH=how.depth, config=how,
    )  # fmt: skip
    return result


def weight_grad(
    dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], shape: Shape, window: Window, bias: bool
) -> tuple[Tensor, Tensor]:
    """The weight gradient [capacity, R, C], 0 in dead slots, and the bias gradient [out] if `bias` (else empty)."""
    if window.linear:
        return sddmm.weight_grad(pixels_of(dy), pixels_of(x), index, block, bias, flags="conv2d")
    dy, x = _channels_last(dy), _channels_last(x)
    (height, width), tiles = block, index.tiles
    blocks, positions = index.places.numel() // (height * width), len(dy) * prod(dy.shape[2:])
    gpu, outputs, stack = gpu_at(x.device), height * tiles.together, stack_of(width)
    no_tf32, weight = exact(x.dtype, "conv2d"), (shape[0], prod(shape[1:]))
    problem = (kind_of(window), (height, width), outputs, x.dtype, positions, weight)
    how = launch_of("weight_grad", gpu, *problem, no_tf32)
    how = how or config.weight_grad_config(gpu, outputs, width, x.dtype, no_tf32)
    chunks = tiles.entry.shape[0] // stack
    parts = config.parts(gpu, chunks, positions, how.depth)
    out_w, area = dy.shape[3], prod(dy.shape[2:])

    def run(dvalues: Tensor, dbias: Tensor, _: bool) -> None:
        launch(
            conv2d_grad_kernel, (chunks, parts), dy, x, tiles.entry, dvalues, dbias, positions, shape[0], blocks,
            triton.cdiv(positions, parts * how.depth), area, *reciprocal(area), out_w, *reciprocal(out_w), *x.shape[2:],
            x.shape[1], *_places(window), **_taps(window), HEIGHT=height, WIDTH=width, TOGETHER=tiles.together,
            STACK=stack, RAGGED=shape[0] % outputs != 0 or x.shape[1] % width != 0, BIAS=bias,
            PRECISION=precision(x.dtype, "conv2d"), UPCAST=upcast(x.dtype), DEPTH=how.depth, config=how,
        )  # fmt: skip

    return sddmm.in_parts(run, parts, x.new_zeros(blocks, *block), x.new_empty(bias * shape[0]), False)


def _problem(source: Tensor, result: Tensor, transposed: bool, taps: int) -> tuple[str, int, tuple[int, int]]:
    """The op, and as the table counts them: batch x output pixels, and the dense weight's [rows, columns]."""
    x, y = (result, source) if transposed else (source, result)
    return "input_grad" if transposed else "forward", len(y) * prod(y.shape[2:]), (y.shape[1], x.shape[1] * taps)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _places(window: Window) -> tuple[int, ...]:
    return window.padding[0], window.padding[2], *window.dilation


def _taps(window: Window) -> dict[str, int]:
    """What is divided by in a loop: constants, by which a compiler multiplies instead."""
    steps = {"STRIDE_H": window.stride[0], "STRIDE_W": window.stride[1]}
    return {"KERNEL_W": window.kernel[1], "TAPS": prod(window.kernel), **steps}
