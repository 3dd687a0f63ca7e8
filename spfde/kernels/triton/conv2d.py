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
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.epilogue import Epilogue
from spfde.kernels.triton import config, sddmm, spmm
from spfde.kernels.triton.conv2d_plan import exact, product_config, with_transpose
from spfde.kernels.triton.launch import exact as exact_linear
from spfde.kernels.triton.launch import gpu_at, launch, upcast
from spfde.pattern import Units, Window
from spfde.tiles import stack_of

Shape = tuple[int, ...]


@triton.jit
def multiply(
    source, values, bias, result, row_ptr, col, perm, positions, grid_h, grid_w, source_h, source_w, sources, result_h,
    result_w, results, rows, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """result[pixel, block row] = sum over the row's blocks of source[pixel moved by the tap, block column] x block.

    DEPTH channels are multiplied at once. grid_h, grid_w: destination pixels of one residue in an image.
    """
    INNER: tl.constexpr = R if TRANSPOSED else C
    OUTER: tl.constexpr = C if TRANSPOSED else R
    PARTS: tl.constexpr = INNER // DEPTH
    row = tl.program_id(0) % rows  # rows fastest: programs that run together read the same pixels
    pixel = tl.program_id(0) // rows * PIXELS + tl.arange(0, PIXELS)
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

    n = tl.arange(0, OUTER)
    k = tl.arange(0, DEPTH)
    total = tl.zeros((PIXELS, OUTER), tl.float32)
    start, stop = tl.load(row_ptr + row), tl.load(row_ptr + row + 1)
    if not TRANSPOSED:  # counted in units, C to a block
        start, stop = start // C, stop // C
    for step in range(start * PARTS, stop * PARTS):
        entry = step // PARTS
        inner = step % PARTS * DEPTH + k
        if TRANSPOSED:
            block = tl.load(perm + entry)
            column = tl.load(col + entry)
            first = column // TAPS * R
        else:
            block = entry
            column = tl.load(col + entry * C)
            first = column // (TAPS * C) * C  # column // TAPS, in a form that shows the compiler what divides it
        tap = column % TAPS
        if TRANSPOSED:
            move_h = -((tap // KERNEL_W * dilation_h - phase_h) // stride_h)
            move_w = -((tap % KERNEL_W * dilation_w - phase_w) // stride_w)
        else:
            move_h, move_w = tap // KERNEL_W * dilation_h, tap % KERNEL_W * dilation_w
        h, w = from_h + move_h, from_w + move_w
        inside = (wanted & (h >= 0) & (h < source_h) & (w >= 0) & (w < source_w))[:, None]
        if RAGGED:
            inside = inside & (first + inner < sources)[None, :]
        move = (move_h * source_w + move_w) * sources + first + inner
        a = tl.load(base[:, None] + move[None, :], mask=inside, other=0.0)
        weights = values + block.to(tl.int64) * (R * C)
        if TRANSPOSED:
            b = tl.load(weights + inner[:, None] * C + n[None, :])
        else:
            b = tl.load(weights + n[None, :] * C + inner[:, None])
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)

    channel = result_row * OUTER + n
    if BIAS:
        total += tl.load(bias + channel, mask=channel < results, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)
    at = result + ((image.to(tl.int64) * result_h + at_h) * result_w + at_w) * results
    mask = wanted[:, None] & (channel < results)[None, :]
    tl.store(at[:, None] + channel[None, :], total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def reduce(
    dy, x, dvalues, dbias, row_ptr, col, positions, span, slots, out_h, out_w, height, width, channels, outputs,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KERNEL_W: tl.constexpr, TAPS: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, ALIGNED: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, PIXELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dvalues[part, block] = sum over the part's pixels of dY[pixel, block row]^T X[pixel moved by the tap, channels].

    A program owns GROUP blocks of a block row, stacked on the M axis so that it is long even for small blocks, and one
    part: `span` pixels. ALIGNED channels in a row of memory belong to one block and start at a multiple of ALIGNED.
    """
    group, row, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tl.arange(0, R)
    output = row * R + n
    start, stop = tl.load(row_ptr + row) // C, tl.load(row_ptr + row + 1) // C
    first = start + group * GROUP
    end = tl.minimum(positions, (part + 1) * span)
    if first < stop:
        m = tl.arange(0, GROUP * C)
        block = first + m // C
        column = tl.load(col + block * C, mask=block < stop, other=0)
        channel, tap = column // TAPS + m % C, column % TAPS
        move_h, move_w = tap // KERNEL_W * dilation_h - pad_h, tap % KERNEL_W * dilation_w - pad_w
        move = (move_h * width + move_w) * channels + channel
        live = ((block < stop) & (channel < channels)).to(tl.int32)
        # Loaded columns hide from the compiler that a block's channels are neighbours at one tap.
        move = tl.max_contiguous(tl.multiple_of(move, ALIGNED), ALIGNED)
        move_h, move_w = tl.max_constancy(move_h, ALIGNED), tl.max_constancy(move_w, ALIGNED)
        live = tl.max_constancy(live, ALIGNED) != 0
        total = tl.zeros((GROUP * C, R), tl.float32)
        for begin in range(part * span, end, PIXELS):
            pixel = begin + tl.arange(0, PIXELS)
            image, place = pixel // (out_h * out_w), pixel % (out_h * out_w)
            at_h, at_w = place // out_w * stride_h, place % out_w * stride_w
            base = ((image.to(tl.int64) * height + at_h) * width + at_w) * channels
            h, w = at_h[None, :] + move_h[:, None], at_w[None, :] + move_w[:, None]
            inside = (pixel < end)[None, :] & live[:, None] & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            a = tl.load(x + base[None, :] + move[:, None], mask=inside, other=0.0)
            mask = (pixel < end)[:, None] & (output < outputs)[None, :]
            b = tl.load(dy + pixel.to(tl.int64)[:, None] * outputs + output[None, :], mask=mask, other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        slot = part.to(tl.int64) * slots + block
        place = slot[:, None] * (R * C) + n[None, :] * C + (m % C)[:, None]
        tl.store(dvalues + place, total.to(dvalues.dtype.element_ty), mask=(block < stop)[:, None])
    if BIAS and group == 0:
        sums = tl.zeros((R,), tl.float32)
        for begin in range(part * span, end, PIXELS):
            pixel = begin + tl.arange(0, PIXELS)
            mask = (pixel < end)[:, None] & (output < outputs)[None, :]
            b = tl.load(dy + pixel.to(tl.int64)[:, None] * outputs + output[None, :], mask=mask, other=0.0)
            sums += tl.sum(b.to(tl.float32), 0)
        tl.store(dbias + part * outputs + output, sums.to(dbias.dtype.element_ty), mask=output < outputs)


def forward(x: Tensor, values: Tensor, epilogue: Epilogue, units: Units, shape: Shape, window: Window) -> Tensor:
    """Y [batch, out, out_h, out_w] = epilogue(conv2d(x)) in channels_last memory.

    x: [batch, channels, height, width]. values: [capacity, R, C]. The epilogue's residual is shaped like y.
    """
    if _is_linear(window, x.dtype):
        residual = None if epilogue.residual is None else _pixels(epilogue.residual)
        return _images(spmm.forward(_pixels(x), values, epilogue._replace(residual=residual), units, shape[0]), x)
    size = window.output_size(*x.shape[2:])
    lists = (units.row_ptr, units.col, None)
    bias, scale, residual, act, after = epilogue
    if scale is None and residual is None and act in ("none", "relu"):
        return _multiply(x, values, bias, lists, (shape[0], *size), size, window, act == "relu")
    y = _multiply(x, values, None, lists, (shape[0], *size), size, window, False)
    y = y if scale is None else y * scale.view(-1, 1, 1)
    y = y if bias is None else y + bias.view(-1, 1, 1)
    y = y if residual is None or after else y + residual
    y = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu}[act](y)
    return (y if residual is None or not after else y + residual).to(x.dtype)


def input_grad(dy: Tensor, values: Tensor, units: Units, size: Shape, shape: Shape, window: Window) -> Tensor:
    """DX [batch, channels, *size] in channels_last memory."""
    if _is_linear(window, dy.dtype):
        return _images(spmm.input_grad(_pixels(dy), values, units, shape[1]), dy)
    if not units.t_row_ptr.numel():
        units = with_transpose(units, values.shape[1:], shape, window)
    lists = (units.t_row_ptr, units.t_col, units.t_perm)
    grid = tuple(triton.cdiv(side, step) for side, step in zip(size, window.stride, strict=True))
    return _multiply(dy, values, None, lists, (shape[1], *size), grid, window, False)


def _multiply(
    source: Tensor,
    values: Tensor,
    bias: Tensor | None,
    lists: tuple[Tensor, Tensor, Tensor | None],
    size: Shape,
    grid: Shape,
    window: Window,
    relu: bool,
) -> Tensor:
    """The result [batch, *size] by lists (row pointers, columns, and if transposed, blocks)."""
    last, (height, width) = torch.channels_last, values.shape[1:]
    source = source.contiguous(memory_format=last)
    result = torch.empty((len(source), *size), dtype=source.dtype, device=source.device, memory_format=last)
    inner, outer = (width, height) if lists[2] is None else (height, width)
    rows, positions = lists[0].numel() - 1, len(source) * prod(grid)
    how = product_config(gpu_at(source.device), outer, inner, source.dtype, positions, exact(source.dtype))
    launch(
        multiply, (triton.cdiv(positions, how.tokens) * rows,), source, values, bias, result, *lists, positions, *grid,
        *source.shape[2:], source.shape[1], *size[1:], size[0], rows, *_steps(window), **_taps(window), R=height,
        C=width, TRANSPOSED=lists[2] is not None, BIAS=bias is not None, RELU=relu,
        RAGGED=source.shape[1] % inner != 0, PRECISION=_precision(source.dtype), UPCAST=upcast(source.dtype),
        PIXELS=how.tokens, DEPTH=how.depth, config=how,
    )  # fmt: skip
    return result


def weight_grad(
    dy: Tensor, x: Tensor, units: Units, block: Sequence[int], shape: Shape, window: Window, bias: bool
) -> tuple[Tensor, Tensor]:
    """The weight gradient [capacity, R, C], 0 in dead slots, and the bias gradient [out] if `bias` (else empty)."""
    if _is_linear(window, x.dtype):
        return sddmm.weight_grad(_pixels(dy), _pixels(x), units, block, bias)
    dy, x = (t.contiguous(memory_format=torch.channels_last) for t in (dy, x))
    (height, width), rows = block, units.row_ptr.numel() - 1
    slots, positions = units.col.numel() // width, len(dy) * prod(dy.shape[2:])
    gpu, together = gpu_at(x.device), stack_of(width)
    how = config.weight_grad_config(gpu, height, width, x.dtype, exact(x.dtype))
    # As many groups as a full row has: none asks the device how long its rows are, those past the end stop at once.
    groups = triton.cdiv(triton.cdiv(shape[1], width) * prod(window.kernel), together)
    parts = config.parts(gpu, slots // together + rows, positions, how.depth)
    kind = x.dtype if parts == 1 else torch.float32
    dvalues, dbias = x.new_zeros(parts, slots, *block, dtype=kind), x.new_zeros(parts, bias * shape[0], dtype=kind)
    launch(
        reduce, (groups, rows, parts), dy, x, dvalues, dbias, units.row_ptr, units.col, positions,
        triton.cdiv(positions, parts), slots, *dy.shape[2:], *x.shape[2:], x.shape[1], shape[0], *_steps(window),
        **_taps(window), R=height, C=width, ALIGNED=gcd(x.shape[1], width, 16), BIAS=bias,
        PRECISION=_precision(x.dtype), UPCAST=upcast(x.dtype), PIXELS=how.depth, GROUP=together, config=how,
    )  # fmt: skip
    return (dvalues[0], dbias[0]) if parts == 1 else (dvalues.sum(0).to(x.dtype), dbias.sum(0).to(x.dtype))


def _is_linear(window: Window, dtype: torch.dtype) -> bool:
    """Whether the linear kernels do it: unless torch's flags give convolutions another precision than them."""
    return window.linear and exact(dtype) == exact_linear(dtype)


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and not exact(dtype) else "ieee"


def _pixels(x: Tensor) -> Tensor:
    """[batch x height x width, channels] of images; a view of channels_last ones."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(y: Tensor, like: Tensor) -> Tensor:
    """The images [batch, channels, height, width] of those pixels, sized as `like`."""
    return y.view(len(like), *like.shape[2:], y.shape[1]).permute(0, 3, 1, 2)


def _steps(window: Window) -> tuple[int, ...]:
    return *window.stride, window.padding[0], window.padding[2], *window.dilation


def _taps(window: Window) -> dict[str, int]:
    return {"KERNEL_W": window.kernel[1], "TAPS": prod(window.kernel)}
