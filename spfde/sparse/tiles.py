"""How the GPU kernels walk a weight stored in blocks: entries in groups of rows, and work of about equal length.

Everything is built on the weight's device, without asking it for a number, in shapes that depend on the capacity alone:
a topology change changes no launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STACKED = 128  # weights of a row that the weight gradient takes at once: small blocks stand side by side
LONG = 8  # mean rows: a longer one is cut
SHORT = 32  # entries: a row this short is never cut


class Tiles(NamedTuple):
    """A block-sparse matrix for one direction, int32. A *group* is `together` consecutive block rows.

    entry [E, 2 + together]: block column, group, then the slot in `values` of each of the group's rows, -1 for none.
    A group's entries are adjacent, columns ascending, and fill whole chunks of `stack_of(width)` entries, at least one;
    slots are -1 past its last one, and the group too past the last group.
    work [W, 4]: group, first entry, past the last, and the place of its sum in scratch memory, -1 if the item is all
    of its group; longest first. Group -1: nothing to do.
    split [S, 3]: the groups that were cut: group, first place in scratch memory, past the last. Group -1: none.
    """

    entry: Tensor
    work: Tensor
    split: Tensor

    @property
    def together(self) -> int:
        """Block rows in a group."""
        return self.entry.shape[1] - 2

    @property
    def scratch(self) -> int:
        """Sums of parts of a group that scratch memory must have room for."""
        return 2 * self.split.shape[0]


def stack_of(width: int) -> int:
    """Entries of blocks of this width that fill a chunk."""
    return max(1, STACKED // width)


def build_tiles(
    row: Tensor,
    col: Tensor,
    slot: Tensor,
    live: Tensor,
    shape: tuple[int, int],
    together: int,
    stack: int,
    cut: bool = True,
) -> Tiles:
    """The tiles of the blocks at (row, col) [capacity] of a grid of `shape` that are `live` (bool).

    slot: where each is in `values`. cut: long groups may become several items of work.
    """
    rows, cols = shape
    capacity, device = row.numel(), row.device
    groups = -(-rows // together)
    key = torch.where(live, row // together * cols + col, groups * cols)
    key, order = torch.sort(key, stable=True)
    group = key // max(1, cols)  # dead ones: `groups`
    new = torch.ones_like(key)
    new[1:] = key[1:] != key[:-1]
    count = key.new_zeros(groups + 1).index_add(0, group, new)[:groups]
    filled = (count + stack - 1).div(stack, rounding_mode="floor").clamp(min=1) * stack
    base = filled.cumsum(0) - filled
    size = -(-(capacity + groups * stack) // stack) * stack  # whatever is stored fits
    first = torch.nn.functional.pad(count.cumsum(0), (1, 0))[group]
    at = torch.nn.functional.pad(base, (0, 1))[group] + new.cumsum(0) - 1 - first
    at = torch.where(group == groups, size, at)  # dead ones fall off the end
    entry = torch.full((size + 1, 2 + together), -1, dtype=torch.int32, device=device)
    entry[:, 0] = 0
    place = torch.arange(size, device=device)
    owner = torch.searchsorted(filled.cumsum(0), place, right=True)
    entry[:size, 1] = torch.where(owner < groups, owner, -1).to(torch.int32)
    entry[at, 0] = (key % max(1, cols)).to(torch.int32)
    entry[at, 2 + row[order] % together] = slot[order].to(torch.int32)
    work, split = _work(count, base, capacity, min(cols, capacity) if cut else 0, stack)
    return Tiles(entry[:size], work, split)


def _work(count: Tensor, base: Tensor, capacity: int, longest: int, stack: int) -> tuple[Tensor, Tensor]:
    """The work items of groups with `count` entries from `base` on, and which groups were cut."""
    groups, device = count.numel(), count.device
    limit = -(-max(SHORT, LONG * -(-capacity // max(1, groups))) // stack) * stack
    cut = 0 if longest <= limit else capacity // limit  # at most so many groups are longer
    parts = -(-count // limit) if cut else torch.ones_like(count)
    parts = parts.clamp(min=1)
    ends, item = parts.cumsum(0), torch.arange(groups + cut, device=device)
    group = torch.searchsorted(ends, item, right=True)
    there = group < groups
    group = group.clamp(max=max(0, groups - 1))
    part = item - (ends - parts)[group]
    step = (-(-count // parts) + stack - 1).div(stack, rounding_mode="floor") * stack
    start = (part * step[group]).minimum(count[group])
    stop = (start + step[group]).minimum(count[group])
    whole = parts == 1
    scratch = torch.where(whole, 0, parts)
    place = scratch.cumsum(0) - scratch
    columns = (
        torch.where(there, group, -1),
        base[group] + start,
        base[group] + stop,
        torch.where(whole[group], -1, place[group] + part),
    )
    work = torch.stack(columns, 1).to(torch.int32)
    length = torch.where(there, stop - start, -1)
    work = work[length.argsort(descending=True, stable=True)].contiguous()
    first = whole.to(torch.int8).argsort(stable=True)[:cut]  # cut ones first, in order
    names = torch.where(whole[first], -1, first)
    split = torch.stack((names, place[first], place[first] + scratch[first]), 1).to(torch.int32)
    return work, split
