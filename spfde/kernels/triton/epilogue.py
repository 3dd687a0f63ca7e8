"""The end of every product, linear layers' and convolutions' (see `spfde.kernels.epilogue`)."""

import triton
import triton.language as tl


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
def finish(acc, scale, bias, residual, kept, y, row, valid, output, outer, stride_r, SCALE: tl.constexpr,
           BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    """Writes the sums acc [M, N] to y [rows, outer] at `row` [M] (int64; those that are `valid`) and `output` [N]."""
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
