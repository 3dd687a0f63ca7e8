"""The patterns a weight may be stored in: how each cuts it into blocks, and which blocks may be stored together.

A block is what is kept or dropped as one. Its *position* is its flat place in the grid of blocks, counted row by row;
for patterns of single weights that is the flat place in the dense weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

_FORMS = "'unstructured', 'block:RxC' (R outputs x C inputs), 'n:m' with n < m, 'fan-in' or 'channel'"


@dataclass(frozen=True)
class Grid:
    """A weight [outputs, channels, taps] cut into blocks of R outputs x C consecutive input channels at one tap.

    Block column = (channel // C) * taps + tap. Blocks at the edges may reach outside the weight. order [channels]
    (int64, None: as they are): the channel of the weight that is at each place when channels are counted.
    """

    outputs: int
    channels: int
    taps: int = 1
    block: tuple[int, int] = (1, 1)
    order: Tensor | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Block rows and block columns."""
        return ceil(self.outputs / self.block[0]), ceil(self.channels / self.block[1]) * self.taps

    @property
    def size(self) -> int:
        """Number of blocks."""
        return prod(self.shape)

    @property
    def weights(self) -> int:
        """Number of weights; as a flat place it means "outside the weight"."""
        return self.outputs * self.channels * self.taps

    @property
    def ragged(self) -> bool:
        """Whether some blocks reach outside the weight."""
        return self.outputs % self.block[0] != 0 or self.channels % self.block[1] != 0

    def rows(self, device: torch.device | None = None) -> Tensor:
        """The block row [size] (int64) of every position."""
        return torch.arange(self.shape[0], device=device).view(-1, 1).expand(self.shape).reshape(-1)

    def cut(self, weight: Tensor) -> Tensor:
        """All blocks [size, R, C] of a dense weight, 0 where they reach outside."""
        height, width = self.block
        weight = weight.reshape(self.outputs, self.channels, self.taps)
        if self.order is not None:
            weight = weight.index_select(1, self.order)
        if self.ragged:
            weight = F.pad(weight, (0, 0, 0, -self.channels % width, 0, -self.outputs % height))
        split = weight.reshape(self.shape[0], height, ceil(self.channels / width), width, self.taps)
        return split.permute(0, 2, 4, 1, 3).reshape(self.size, height, width)

    def places(self, positions: Tensor) -> Tensor:
        """Flat places [n, R, C] (int64) in the dense weight of the blocks at `positions` [n], `weights` outside it."""
        height, width = self.block
        positions = positions.view(-1, 1, 1)
        if self.block == (1, 1) and self.order is None:
            return positions
        column = positions % self.shape[1]
        output = positions // self.shape[1] * height + torch.arange(height, device=positions.device).view(-1, 1)
        channel = column // self.taps * width + torch.arange(width, device=positions.device)
        outside = (output >= self.outputs) | (channel >= self.channels)
        if self.order is not None:
            channel = self.order[channel.clamp(max=self.channels - 1)]
        place = (output * self.channels + channel) * self.taps + column % self.taps
        return place.masked_fill(outside, self.weights)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which weights are stored together, and how many where; equal to its name, as in `layer.pattern == "2:4"`.

    kind: "unstructured", "block", "n:m", "fan-in" or "channel". numbers: R and C of a block, n and m of n:m.
    """

    kind: str = "unstructured"
    numbers: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern a user named.

        Raises:
            ValueError: no pattern has this name; the message lists the forms.
        """
        if text in ("unstructured", "fan-in", "channel"):
            return cls(text)
        named = re.fullmatch(r"block:([1-9]\d*)x([1-9]\d*)", str(text))
        if named:
            return cls("block", (int(named[1]), int(named[2])))
        named = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", str(text))
        if named and int(named[1]) < int(named[2]):
            return cls("n:m", (int(named[1]), int(named[2])))
        raise ValueError(f"expected pattern {_FORMS}, got {text!r}, try 'block:4x1' or '2:4'")

    def __str__(self) -> str:
        first, second = self.numbers
        return {"block": f"block:{first}x{second}", "n:m": f"{first}:{second}"}.get(self.kind, self.kind)

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Pattern | str) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern itself gives a layer, None where it is free."""
        return 1 - self.numbers[0] / self.numbers[1] if self.kind == "n:m" else None

    def grid(self, shape: tuple[int, ...], groups: int = 1) -> Grid:
        """How the pattern cuts a weight [outputs, channels, *kernel] of a layer with `groups`.

        Raises:
            ValueError: a block would span two groups.
        """
        outputs, channels, taps = shape[0], shape[1], prod(shape[2:])
        if self.kind == "channel":
            return Grid(outputs, channels * taps, 1, (1, max(1, channels * taps)))
        if self.kind != "block":
            return Grid(outputs, channels, taps)
        height = self.numbers[0]
        if groups > 1 and outputs // groups % height:
            raise ValueError(
                f"expected outputs per group to be a multiple of {height} for pattern {str(self)!r}, got "
                f"{outputs // groups}, try 'block:1x{self.numbers[1]}' or exclude the layer"
            )
        return Grid(outputs, channels, taps, self.numbers)

    def groups(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """The group [grid.size] (int64) of every position: groups are what the pattern counts in (see `quota`)."""
        if self.kind not in ("fan-in", "n:m"):
            return torch.zeros(1, dtype=torch.int64, device=device).expand(grid.size)  # takes no memory
        if self.kind == "fan-in":
            return grid.rows(device)
        position = torch.arange(grid.size, device=device)
        column = position % grid.shape[1]
        along = ceil(grid.channels / self.numbers[1])
        group = column // grid.taps // self.numbers[1]
        return (position // grid.shape[1] * along + group) * grid.taps + column % grid.taps

    def parts(self, grid: Grid) -> int:
        """How many groups there are."""
        if self.kind == "fan-in":
            return grid.shape[0]
        return grid.outputs * ceil(grid.channels / self.numbers[1]) * grid.taps if self.kind == "n:m" else 1

    def quota(self, grid: Grid, count: int, device: torch.device | None = None) -> Tensor:
        """How many blocks each group holds [number of groups] (int64) when the layer holds `count`.

        fan-in: the same for every output, the remainder on the first ones. n:m: n for every m, whatever the count; a
        shorter group at the edge holds n too, as far as it can. That of a single group is in main memory, where
        reading it waits for no device.
        """
        device = device if self.parts(grid) > 1 else None
        if self.kind == "fan-in":
            rows = grid.shape[0]
            return count // max(1, rows) + (torch.arange(rows, device=device) < count % max(1, rows)).long()
        if self.kind == "n:m":
            n, m = self.numbers
            along = torch.arange(ceil(grid.channels / m), device=device)
            held = (grid.channels - along * m).clamp(max=n)
            return held.view(1, -1, 1).expand(grid.outputs, -1, grid.taps).reshape(-1)
        return torch.tensor([count], device=device)

    def positions(self, mask: Tensor, grid: Grid) -> Tensor:
        """Ascending positions [nnz] (int64) of the blocks that a bool mask of the dense shape keeps.

        Raises:
            ValueError: the mask violates the pattern; names the first place where it does.
        """
        kept = grid.cut(mask).sum((1, 2))
        if grid.block != (1, 1):
            whole = grid.cut(torch.ones_like(mask)).sum((1, 2))
            broken = ((kept > 0) & (kept < whole)).nonzero().view(-1)
            if broken.numel():
                first = int(broken[0])
                raise ValueError(
                    f"expected a mask of whole blocks for pattern {str(self)!r}, got {int(kept[first])} of "
                    f"{int(whole[first])} weights kept in {self._place(grid, first)}, try spfde.sparsify(layer, "
                    f"pattern={str(self)!r}) or pattern='unstructured'"
                )
        positions = kept.nonzero().view(-1)
        problem = self.problem(positions, grid)
        if problem:
            raise ValueError(problem)
        return positions

    def problem(self, positions: Tensor, grid: Grid) -> str | None:
        """How blocks stored at `positions` violate the pattern, naming the first place, or None."""
        if self.kind not in ("fan-in", "n:m"):
            return None
        groups, quota = self.groups(grid, positions.device), self.quota(grid, positions.numel(), positions.device)
        held = torch.bincount(groups[positions], minlength=quota.numel())
        exact = self.kind == "fan-in"
        if exact:  # an output may be without weights (ablated); the others share the count
            stand = held.nonzero().view(-1)
            quota = torch.zeros_like(quota)
            quota[stand] = self.quota(Grid(stand.numel(), grid.channels, grid.taps), positions.numel(), quota.device)
        broken = (held != quota if exact else held > quota).nonzero().view(-1)
        if not broken.numel():
            return None
        group = int(broken[0])
        members = (groups == group).nonzero().view(-1)
        return (
            f"expected {'' if exact else 'at most '}{int(quota[group])} stored weights in "
            f"{self._place(grid, int(members[0]))} for pattern {str(self)!r}, got {int(held[group])}, try "
            f"spfde.sparsify(layer, pattern={str(self)!r}) or pattern='unstructured'"
        )

    def _place(self, grid: Grid, position: int) -> str:
        """The block, or the group that starts, at a position, in the user's coordinates."""
        row, column = divmod(position, grid.shape[1])
        if self.kind in ("fan-in", "channel"):
            return f"output {row}"
        height, width = (1, self.numbers[1]) if self.kind == "n:m" else grid.block
        channel = column // grid.taps * grid.block[1]
        outputs = _span(row * height, height, grid.outputs)
        inputs = _span(channel, width, grid.channels)
        return f"outputs {outputs}, inputs {inputs}" + (f", tap {column % grid.taps}" if grid.taps > 1 else "")


def _span(start: int, length: int, end: int) -> str:
    last = min(start + length, end) - 1
    return str(start) if last == start else f"{start} to {last}"
