"""The dense weight gradient of one step, for growth: in slabs of rows, from what one backward pass leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from spfde.nn import SparseLayer
from spfde.sparse import no_sync as counting

# Weights in a slab: large enough for a matrix product to run well, small beside any model.
SLAB = 1 << 20


class Probe:
    """Collects what the dense weight gradient of one layer is made of, over all backward passes of a step.

    It keeps the factors dY and X while they are smaller than the dense weight, else their product, so an armed step
    needs at most one dense gradient per layer and mostly far less.
    """

    def __init__(self, layer: SparseLayer) -> None:
        self.layer = layer
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._sum: Tensor | None = None

    def __call__(self, dy: Tensor, x: Tensor | None = None) -> None:
        """One more backward pass. dy: gradient of the output for input x, or that of the dense weight itself."""
        dy = dy.detach()
        if x is None:
            self._sum = _wide(dy) if self._sum is None else self._sum + _wide(dy)
            return
        if len(self.layer.shape) == 2:
            dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        elif x.dim() == 3:
            dy, x = dy.unsqueeze(0), x.unsqueeze(0)
        self._factors.append((dy, x))
        if sum(dy.numel() + x.numel() for dy, x in self._factors) > prod(self.layer.shape):
            self.multiply()

    @property
    def seen(self) -> bool:
        """Whether a backward pass came by."""
        return bool(self._factors) or self._sum is not None

    def multiply(self) -> None:
        """Replaces the factors by their product, the dense gradient of this rank."""
        if self._factors:
            slabs = [self._slab(start, stop) for start, stop in self._spans()]
            self._factors, self._sum = [], torch.cat(slabs)

    def slabs(self) -> Iterator[tuple[int, Tensor]]:
        """(position of its first block, blocks [n, R, C] of the gradient), in order, averaged over ranks.

        Every rank must walk through it: each slab is one all-reduce.
        """
        grid = self.layer.grid
        for start, stop in self._spans():
            slab = self._slab(start, stop)
            if ranks() > 1:
                slab = slab.clone(memory_format=torch.contiguous_format)  # it may be a view of the sum
                dist.all_reduce(slab)
                slab /= ranks()
            yield start // grid.block[0] * grid.shape[1], replace(grid, outputs=stop - start).cut(slab)

    def magnitudes(self) -> Iterator[tuple[int, Tensor]]:
        """(position of its first block, sum of |gradient| over each block), as `slabs`."""
        for first, blocks in self.slabs():
            yield first, blocks.abs().sum((1, 2))

    def scale(self) -> Tensor:
        """What the gradient that was watched must be multiplied by to be what the optimizer step sees: [] float64.

        It differs under GradScaler, averaging over ranks and clipping; 1 where the stored weights do not tell.
        """
        layer = self.layer
        positions, grad = layer.positions(), layer.values.grad
        used, watched = layer.values.new_zeros(2, dtype=torch.float64)
        for first, blocks in self.slabs():
            watched = watched + _stored(blocks, positions - first).abs().sum()
        if grad is not None:
            used = used + grad[: layer.nnz].abs().sum()
        return torch.where((used != 0) & (watched != 0), used / watched, 1.0)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Rows [start, stop) of the slabs: whole blocks, whole groups of a grouped convolution."""
        rows, groups = self.layer.shape[0], self.layer.window.groups
        unit = self.layer.grid.block[0] if groups == 1 else rows // groups
        step = max(1, SLAB // max(1, unit * prod(self.layer.shape[1:]))) * unit
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def _slab(self, start: int, stop: int) -> Tensor:
        shape = (stop - start, *self.layer.shape[1:])
        parts = [] if self._sum is None else [self._sum[start:stop]]
        parts += [self._product(dy[:, start:stop], x, start, shape) for dy, x in self._factors]
        if not parts:
            return self.layer.values.new_zeros(shape, dtype=_wide(self.layer.values).dtype)
        return sum(parts[1:], parts[0])

    def _product(self, dy: Tensor, x: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        dy = _wide(dy)
        if len(shape) == 2:
            return dy.t() @ _wide(x)
        window = self.layer.window
        groups = 1
        if window.groups > 1:
            per_group = self.layer.shape[0] // window.groups
            groups, first = shape[0] // per_group, start // per_group
            x = x[:, first * shape[1] : (first + groups) * shape[1]]
        top, bottom, left, right = window.padding
        x = F.pad(_wide(x), (left, right, top, bottom)).contiguous()
        return torch.nn.grad.conv2d_weight(
            x, shape, dy.contiguous(), window.stride, (0, 0), window.dilation, groups
        )  # fmt: skip


def _stored(blocks: Tensor, here: Tensor) -> Tensor:
    """Those blocks that are at the places `here`, ascending, of which some may lie outside; a GPU adds zeros."""
    if not counting.waits(here):
        start, stop = torch.searchsorted(here, torch.tensor([0, len(blocks)])).tolist()
        return blocks[here[start:stop]]
    inside = (here >= 0) & (here < len(blocks))
    return blocks[here.clamp(0, len(blocks) - 1)] * inside.view(-1, 1, 1)


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree(flags: list[bool], any_rank: bool) -> list[bool]:
    """Each flag over all ranks: set on any of them, or on every one."""
    if ranks() == 1 or not flags:
        return flags
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(votes, dist.ReduceOp.MAX if any_rank else dist.ReduceOp.MIN)
    return [bool(vote) for vote in votes.tolist()]


def _wide(tensor: Tensor) -> Tensor:
    """float64 stays, anything else is summed in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
