"""What kernels read of an index, and how a weight is applied: derived from the canonical index, never saved."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.sparse.index import Index, positions_of, spread
from spfde.sparse.no_sync import count_each
from spfde.sparse.pattern import Grid


class Window(NamedTuple):
    """How a weight [out, in, kernel_h, kernel_w] is applied; a linear layer is the default one-tap window.

    padding: zeros added at the top, bottom, left and right.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output of an image."""
        top, bottom, left, right = self.padding
        return (
            (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1,
            (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1,
        )

    @property
    def linear(self) -> bool:
        """Whether the convolution is a linear layer, pixel by pixel."""
        return self._replace(dilation=(1, 1)) == Window()


ONE_TAP = Window()


class KernelIndex(NamedTuple):
    """What the kernels read of an index, in *units*: a unit is one column of a block, R weights that share an input.

    For R == 1 units are single weights, ascending within a row. The transpose groups them by input channel (and by the
    stride residue of their tap, see `csrc/include/spfde/conv2d.h`); `t_perm` maps its order to units, dead ones to
    themselves. For R > 1 units follow the blocks, and `t_*` are empty: no kernel needs them.

    places: flat place in the dense weight of every value, the weight's size where there is none (int32 where it fits).
    Empty where the native kernels do without: for single weights on a CPU (see `places_of`).
    """

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    places: Tensor


def places_of(index: KernelIndex, shape: tuple[int, ...]) -> Tensor:
    """`KernelIndex.places` of a weight of dense `shape`, derived where it is empty."""
    if index.places.numel():
        return index.places
    live = positions_of(Index(index.row_ptr, index.col), prod(shape[1:]))
    return F.pad(live, (0, index.col.numel() - live.numel()), value=prod(shape))


def slots(index: KernelIndex, block: Sequence[int]) -> int:
    """How many blocks the values of a kernel have room for."""
    return index.col.shape[0] // block[1]


def unit_columns(index: Index, grid: Grid) -> Tensor:
    """Column [capacity * C] (int32) of every unit; one outside the weight repeats its neighbour, its value is 0."""
    channel = index.col.view(-1, 1) // grid.taps * grid.block[1]
    channel = (channel + torch.arange(grid.block[1], device=channel.device)).clamp_(max=grid.channels - 1)
    if grid.order is not None:
        channel = grid.order[channel]
    return (channel * grid.taps + index.col.view(-1, 1) % grid.taps).to(torch.int32).view(-1)


def transpose(index: Index, nnz: int, shape: tuple[int, ...], window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed index of `nnz` single weights, and its permutation; see `KernelIndex`."""
    # What a weight's place in the transpose takes from its row and from its column is worked out once for each of them.
    device, rows, cols, taps = index.col.device, shape[0], prod(shape[1:]), prod(window.kernel)
    out_group, in_group, strides = rows // window.groups, cols // taps, prod(window.stride)
    row = torch.arange(rows, dtype=torch.int32, device=device)
    column = torch.arange(cols, dtype=torch.int32, device=device)
    tap = column % taps
    phase_h = tap // window.kernel[1] * window.dilation[0] % window.stride[0]
    phase_w = tap % window.kernel[1] * window.dilation[1] % window.stride[1]
    channel = column // taps * strides + phase_h * window.stride[1] + phase_w
    counts, live = index.row_ptr.diff(), index.col[:nnz]
    t_row = channel.index_select(0, live)
    if window.groups > 1:
        t_row += spread(row // out_group * (in_group * strides), counts, nnz)
    t_col = spread(row % out_group * taps, counts, nnz) + tap.index_select(0, live)
    t_rows = in_group * window.groups * strides
    # Within a row of the transpose the weights are in order already: a stable sort by it, of few digits, is enough.
    order = torch.sort(t_row.to(torch.int16) if t_rows < 2**15 else t_row, stable=True).indices
    t_row_ptr = index.row_ptr.new_zeros(t_rows + 1)
    t_row_ptr[1:] = count_each(t_row, t_rows).cumsum(0)
    padded = torch.zeros_like(index.col)
    padded[:nnz] = t_col.index_select(0, order)
    perm = torch.arange(index.col.numel(), dtype=torch.int32, device=device)
    perm[:nnz] = order
    return t_row_ptr, padded, perm
