"""norm_act on a GPU in evaluation mode: one elementwise pass, whose statistics are given."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spfde.kernels.gpu import Config
from spfde.kernels.triton.epilogue import activated
from spfde.kernels.triton.launch import launch

TILE = 2048  # elements of a program: 16 bytes of each thread's are neighbours, a few times over
HOW = Config(tokens=0, depth=0, warps=4, stages=1)


@triton.jit
def norm_act_kernel(x, mean, var, weight, bias, residual, y, eps, rows, width, channels, LAST: tl.constexpr,
                    WEIGHT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr,
                    ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """One tile of memory seen as [rows, width]: pixels x channels (LAST), or the planes of channel after channel."""
    across = tl.cdiv(width, COLS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    z = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    channel = (column % channels)[None, :] if LAST else (row % channels)[:, None]
    scale = tl.rsqrt(tl.load(var + channel).to(tl.float32) + eps)
    if WEIGHT:
        scale *= tl.load(weight + channel).to(tl.float32)
    z = (z - tl.load(mean + channel).to(tl.float32)) * scale
    if BIAS:
        z += tl.load(bias + channel).to(tl.float32)
    if RESIDUAL:
        z += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, activated(z, ACT).to(y.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
) -> Tensor:
    """y = act((x - mean) / sqrt(var + eps) weight + bias + residual) like x.

    x, residual: [batch, channels, ...], both channels_last or both contiguous. The rest: [channels] or None.
    """
    y, channels = torch.empty_like(x), x.shape[1]
    pixels = x.numel() // max(1, len(x) * channels)
    last = pixels == 1 or not x.is_contiguous()
    width = channels if last else pixels
    rows = x.numel() // max(1, width)
    cols = min(triton.next_power_of_2(max(1, width)), 256)
    high = TILE // cols
    launch(
        norm_act_kernel, (triton.cdiv(rows, high) * triton.cdiv(width, cols),), x, mean, var, weight, bias, residual,
        y, eps, rows, width, channels, LAST=last, WEIGHT=weight is not None, BIAS=bias is not None,
        RESIDUAL=residual is not None, ACT=act, ROWS=high, COLS=cols, config=HOW,
    )  # fmt: skip
    return y
