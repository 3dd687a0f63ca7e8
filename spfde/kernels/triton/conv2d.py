"""conv2d on a GPU: implicit products over (tap, channel block) lists, channels last, pixels on the MMA's M axis.

Forward and input gradient are one kernel: every program owns a tile of destination pixels x one block row of the
destination's channels and walks that row's list of blocks. For the input gradient the list is the transposed one, by
channel block and stride residue: pixels of one residue meet the same taps, so that a stride leaves nothing to skip.
The weight gradient walks pixels instead, and several blocks of one block row share what it reads of dY.

No atomics: every sum has one order, whatever the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.triton.conv2d_plan import multiply_tile, precision, reduce_tile, splits_of, upcast
from spfde.pattern import Units, Window

Shape = tuple[int, ...]


@triton.jit
def multiply(
    source, values, bias, result, row_ptr, col, perm, positions, grid_h, grid_w, source_h, source_w, sources, result_h,
    result_w, results, rows, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, kernel_w: tl.constexpr,
    taps: tl.constexpr, R: tl.constexpr, C: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """result[pixel, block row] = sum over the row's blocks of source[pixel moved by the tap, block column] block."""
    DEPTH: tl.constexpr = R if TRANSPOSED else C
    WIDTH: tl.constexpr = C if TRANSPOSED else R
    PARTS: tl.constexpr = (WIDTH + WIDE - 1) // WIDE
    CHUNKS: tl.constexpr = (DEPTH + DEEP - 1) // DEEP
    program = tl.program_id(0)
    row = program // PARTS % rows  # rows fastest: programs that run together read the same pixels
    tile = program // PARTS // rows

    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    image, place = pixel // (grid_h * grid_w), pixel % (grid_h * grid_w)
    i, j = place // grid_w, place % grid_w
    if TRANSPOSED:
        phase_h, phase_w = row // stride_w % stride_h, row % stride_w
        result_row = row // (stride_h * stride_w)
        at_h = i * stride_h + ((phase_h - pad_h) % stride_h + stride_h) % stride_h
        at_w = j * stride_w + ((phase_w - pad_w) % stride_w + stride_w) % stride_w
        from_h, from_w = (at_h + pad_h - phase_h) // stride_h, (at_w + pad_w - phase_w) // stride_w
    else:
        phase_h, phase_w = 0, 0
        result_row = row
        at_h, at_w = i, j
        from_h, from_w = i * stride_h - pad_h, j * stride_w - pad_w
    wanted = (pixel < positions) & (at_h < result_h) & (at_w < result_w)
    base = source + ((image.to(tl.int64) * source_h + from_h) * source_w + from_w) * sources

    n = program % PARTS * WIDE + tl.arange(0, WIDE)
    k = tl.arange(0, DEEP)
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    start, stop = tl.load(row_ptr + row), tl.load(row_ptr + row + 1)
    if not TRANSPOSED:  # counted in units, C to a block
        start, stop = start // C, stop // C
    for step in range(start * CHUNKS, stop * CHUNKS):
        entry = step // CHUNKS
        depth = step % CHUNKS * DEEP + k
        if TRANSPOSED:
            block = tl.load(perm + entry)
            column = tl.load(col + entry)
            first = column // taps * R
        else:
            block = entry
            column = tl.load(col + entry * C)
            first = column // (taps * C) * C  # column // taps, in a form that shows the compiler what divides it
        tap = column % taps
        if TRANSPOSED:
            move_h = -((tap // kernel_w * dilation_h - phase_h) // stride_h)
            move_w = -((tap % kernel_w * dilation_w - phase_w) // stride_w)
        else:
            move_h, move_w = tap // kernel_w * dilation_h, tap % kernel_w * dilation_w
        h, w = from_h + move_h, from_w + move_w
        inside = wanted & (h >= 0) & (h < source_h) & (w >= 0) & (w < source_w)
        move = (move_h * source_w + move_w) * sources + first
        weight = values + block.to(tl.int64) * (R * C)
        if TRANSPOSED:
            weights = weight + depth[:, None] * C + n[None, :]
        else:
            weights = weight + n[None, :] * C + depth[:, None]
        if EVEN:
            a = tl.load(base[:, None] + (move + depth)[None, :], mask=inside[:, None], other=0.0)
            b = tl.load(weights)
        else:
            deep = depth < DEPTH
            within = inside[:, None] & (deep & (first + depth < sources))[None, :]
            a = tl.load(base[:, None] + (move + depth)[None, :], mask=within, other=0.0)
            b = tl.load(weights, mask=deep[:, None] & (n < WIDTH)[None, :], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)

    channel = result_row * WIDTH + n
    kept = (n < WIDTH) & (channel < results)
    if BIAS:
        total += tl.load(bias + channel, mask=kept, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    at = result + ((image.to(tl.int64) * result_h + at_h) * result_w + at_w) * results
    tl.store(at[:, None] + channel[None, :], total.to(result.dtype.element_ty), mask=wanted[:, None] & kept[None, :])


@triton.jit
def reduce(
    dy, x, dvalues, dbias, row_ptr, col, positions, span, slots, out_h, out_w, height, width, channels, outputs,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, kernel_w: tl.constexpr, taps: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, ALIGNED: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, PIXELS: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """dvalues[split, block] = sum over the split's pixels of dY[pixel, block row]^T X[pixel moved, block column].

    A program owns GROUP blocks of a block row, stacked on the M axis so that it is long even for small blocks.
    """
    PARTS: tl.constexpr = (C + DEEP - 1) // DEEP
    WIDES: tl.constexpr = (R + WIDE - 1) // WIDE
    group, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    row, split = tl.program_id(1) // WIDES, tl.program_id(2)
    r = tl.program_id(1) % WIDES * WIDE + tl.arange(0, WIDE)
    output = row * R + r
    kept = (r < R) & (output < outputs)
    start, stop = tl.load(row_ptr + row) // C, tl.load(row_ptr + row + 1) // C
    first = start + group * GROUP
    end = tl.minimum(positions, (split + 1) * span)
    if first < stop:
        m = tl.arange(0, GROUP * DEEP)
        inner = part * DEEP + m % DEEP
        block = first + m // DEEP
        stored = (block < stop) & (inner < C)
        column = tl.load(col + block * C, mask=stored, other=0)
        channel, tap = column // taps + inner, column % taps
        move_h, move_w = tap // kernel_w * dilation_h - pad_h, tap % kernel_w * dilation_w - pad_w
        move = (move_h * width + move_w) * channels + channel
        live = (stored & (channel < channels)).to(tl.int32)
        # Loaded columns hide from the compiler that a block's channels are neighbours at one tap.
        move = tl.max_contiguous(tl.multiple_of(move, ALIGNED), ALIGNED)
        move_h, move_w = tl.max_constancy(move_h, ALIGNED), tl.max_constancy(move_w, ALIGNED)
        live = tl.max_constancy(live, ALIGNED) != 0
        total = tl.zeros((GROUP * DEEP, WIDE), tl.float32)
        for begin in range(split * span, end, PIXELS):
            pixel = begin + tl.arange(0, PIXELS)
            image, place = pixel // (out_h * out_w), pixel % (out_h * out_w)
            at_h, at_w = place // out_w * stride_h, place % out_w * stride_w
            base = ((image.to(tl.int64) * height + at_h) * width + at_w) * channels
            h, w = at_h[None, :] + move_h[:, None], at_w[None, :] + move_w[:, None]
            inside = (pixel < end)[None, :] & live[:, None] & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            a = tl.load(x + base[None, :] + move[:, None], mask=inside, other=0.0)
            at = dy + pixel.to(tl.int64)[:, None] * outputs + output[None, :]
            b = tl.load(at, mask=(pixel < end)[:, None] & kept[None, :], other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        at = dvalues + (split * slots + block.to(tl.int64)[:, None]) * (R * C) + r[None, :] * C + inner[:, None]
        tl.store(at, total.to(dvalues.dtype.element_ty), mask=stored[:, None] & (r < R)[None, :])
    if BIAS:
        if tl.program_id(0) == 0:
            sums = tl.zeros((WIDE,), tl.float32)
            for begin in range(split * span, end, PIXELS):
                pixel = begin + tl.arange(0, PIXELS)
                at = dy + pixel.to(tl.int64)[:, None] * outputs + output[None, :]
                b = tl.load(at, mask=(pixel < end)[:, None] & kept[None, :], other=0.0)
                sums += tl.sum(b.to(tl.float32), 0)
            tl.store(dbias + split * outputs + output, sums.to(dbias.dtype.element_ty), mask=kept)


def compute(
    x: Tensor, values: Tensor, bias: Tensor | None, units: Units, shape: Shape, window: Window, relu: bool = False
) -> Tensor:
    """Y [batch, out, out_h, out_w] in channels_last memory: relu(conv2d(x) + bias), without relu unless asked.

    x: [batch, channels, height, width]. values: [capacity, R, C].
    """
    x = x.contiguous(memory_format=torch.channels_last)
    size = window.output_size(*x.shape[2:])
    y = _empty(x, (x.shape[0], shape[0], *size))
    _multiply(x, values, bias, y, (units.row_ptr, units.col, units.col), size, window, False, relu)
    return y


def compute_input_grad(
    dy: Tensor, values: Tensor, units: Units, size: Shape, shape: Shape, window: Window
) -> Tensor:
    """DX [batch, channels, *size] in channels_last memory."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx = _empty(dy, (dy.shape[0], shape[1], *size))
    grid = (triton.cdiv(size[0], window.stride[0]), triton.cdiv(size[1], window.stride[1]))
    _multiply(dy, values, None, dx, (units.t_row_ptr, units.t_col, units.t_perm), grid, window, True, False)
    return dx


def _multiply(
    source: Tensor,
    values: Tensor,
    bias: Tensor | None,
    result: Tensor,
    lists: tuple[Tensor, Tensor, Tensor],
    grid: tuple[int, int],
    window: Window,
    transposed: bool,
    relu: bool,
) -> None:
    _, height, width = values.shape
    depth, wide = (height, width) if transposed else (width, height)
    tile = multiply_tile(depth, wide, source.element_size())
    rows = lists[0].numel() - 1
    positions = source.shape[0] * prod(grid)
    programs = triton.cdiv(positions, tile.pixels) * rows * triton.cdiv(wide, tile.wide)
    if not programs:
        return
    even = depth % tile.deep == 0 and wide % tile.wide == 0 and source.shape[1] % depth == 0
    multiply[(programs,)](
        source, values, source if bias is None else bias, result, *lists, positions, *grid, *source.shape[2:],
        source.shape[1], *result.shape[2:], result.shape[1], rows, *window.stride, window.padding[0],
        window.padding[2], *window.dilation, kernel_w=window.kernel[1], taps=prod(window.kernel), R=height, C=width,
        TRANSPOSED=transposed, BIAS=bias is not None, RELU=relu, EVEN=even, PRECISION=precision(), UPCAST=upcast(),
        PIXELS=tile.pixels, WIDE=tile.wide, DEEP=tile.deep, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def compute_weight_grad(
    dy: Tensor, x: Tensor, units: Units, block: Sequence[int], shape: Shape, window: Window, bias: bool
) -> tuple[Tensor, Tensor]:
    """The weight gradient [capacity, R, C] and, if `bias`, the bias gradient [out] (else empty)."""
    dy, x = (t.contiguous(memory_format=torch.channels_last) for t in (dy, x))
    height, width = block
    slots = units.col.numel() // width
    tile = reduce_tile(height, width, x.element_size())
    rows = units.row_ptr.numel() - 1
    columns = triton.cdiv(shape[1], width) * prod(window.kernel)
    groups = max(1, triton.cdiv(columns, tile.group))  # as many as a full row takes: no program asks the device
    positions = dy.shape[0] * prod(dy.shape[2:])
    splits = splits_of(positions, slots // tile.group + rows, tile.pixels)
    span = triton.cdiv(triton.cdiv(positions, splits), tile.pixels) * tile.pixels
    kind = x.dtype if splits == 1 else torch.float32
    dvalues = torch.zeros(splits, slots, *block, dtype=kind, device=x.device)
    dbias = torch.zeros(splits, shape[0] if bias else 0, dtype=kind, device=x.device)
    if rows and slots + dbias.numel():
        reduce[(groups * triton.cdiv(width, tile.deep), rows * triton.cdiv(height, tile.wide), splits)](
            dy, x, dvalues, dbias, units.row_ptr, units.col, positions, span, slots, *dy.shape[2:], *x.shape[2:],
            x.shape[1], shape[0], *window.stride, window.padding[0], window.padding[2], *window.dilation,
            kernel_w=window.kernel[1], taps=prod(window.kernel), R=height, C=width,
            ALIGNED=gcd(x.shape[1], width, 16), BIAS=bias, PRECISION=precision(), UPCAST=upcast(),
            PIXELS=tile.pixels, GROUP=tile.group, WIDE=tile.wide, DEEP=tile.deep, num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
    return dvalues.sum(0).to(x.dtype), dbias.sum(0).to(x.dtype)


def _empty(like: Tensor, shape: Shape) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
