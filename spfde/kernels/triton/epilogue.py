"""The end of every product, linear layers' and convolutions' (see `spfde.kernels.epilogue`)."""

import triton
import triton.language as tl

TALL, AT_ONCE = tl.constexpr(128), tl.constexpr(32)  # of more rows, as many outputs as registers can finish at once


@triton.jit
def activated(acc, ACT: tl.constexpr):
    """The activation of float32 values, one of `spfde.kernels.epilogue.ACTIVATIONS`."""
    if ACT == "relu" or ACT == "relu6":  # comparisons that let what is not a number pass
        acc = tl.where(acc < 0.0, 0.0, acc)
    if ACT == "relu6":
        acc = tl.where(acc > 6.0, 6.0, acc)
    if ACT == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    return acc


@triton.jit
def finish(acc, scale, bias, residual, kept, y, row, valid, first, outer, stride_r, SCALE: tl.constexpr,
           BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr,
           OUTPUTS: tl.constexpr):  # fmt: skip
    """Writes the sums acc [ROWS, OUTPUTS] to y [rows, outer] at `row` (int64; those that are `valid`), from `first` on.

    What takes registers of its own is done to a half at a time, and so on.
    """
    if ROWS > TALL and OUTPUTS > AT_ONCE and (RESIDUAL != "none" or KEEP or ACT == "gelu"):
        HALF: tl.constexpr = OUTPUTS // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, (ROWS, 2, HALF)), (0, 2, 1)))
        finish(left, scale, bias, residual, kept, y, row, valid, first, outer, stride_r, SCALE, BIAS, RESIDUAL, KEEP,
               ACT, ROWS, HALF)  # fmt: skip
        finish(right, scale, bias, residual, kept, y, row, valid, first + HALF, outer, stride_r, SCALE, BIAS, RESIDUAL,
               KEEP, ACT, ROWS, HALF)  # fmt: skip
    else:
        output = first + tl.arange(0, OUTPUTS)
        mask = valid[:, None] & (output < outer)[None, :]
        place = row[:, None] * outer + output[None, :]
        if SCALE:
            acc *= tl.load(scale + output, mask=output < outer, other=0.0).to(tl.float32)[None, :]
        if BIAS:
            acc += tl.load(bias + output, mask=output < outer, other=0.0).to(tl.float32)[None, :]
        if RESIDUAL != "none":
            rest = tl.load(residual + row[:, None] * stride_r + output[None, :], mask=mask, other=0.0).to(tl.float32)
        if RESIDUAL == "before":
            acc += rest
        if KEEP:
            given = acc.to(kept.dtype.element_ty)
            tl.store(kept + place, given, mask=mask)
            acc = given.to(tl.float32)
        acc = activated(acc, ACT)
        if RESIDUAL == "after":
            acc += rest
        tl.store(y + place, acc.to(y.dtype.element_ty), mask=mask)
