"""Random positions without a mask: memory and time follow what is stored, not the dense weight."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.sparse.pattern import Grid, Pattern


def random_positions(pattern: Pattern, grid: Grid, count: int, generator: torch.Generator) -> Tensor:
    """Ascending positions [count] (int64) of blocks: every set that the pattern allows is equally likely.

    Raises:
        ValueError: the pattern is n:m, whose groups are as many as weights.
    """
    if pattern.kind == "n:m":
        raise ValueError(f"expected another pattern, got {str(pattern)!r}, try spfde.sparsify of a dense layer")
    if pattern.kind != "fan-in":
        return distinct(1, grid.size, count, generator).view(-1)
    rows, cols = grid.shape
    least, more = divmod(count, rows)  # the first rows hold the remainder, as `Pattern.quota` has it
    first = distinct(more, cols, min(least + 1, cols), generator)
    rest = distinct(rows - more, cols, least, generator)
    place = torch.arange(rows).view(-1, 1) * cols
    return torch.cat([(first + place[:more]).view(-1), (rest + place[more:]).view(-1)])


def distinct(rows: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """For each of `rows`, `count` different numbers below `size`, ascending: [rows, count] (int64)."""
    if 2 * count > size:  # those that are left out are fewer
        kept = torch.ones(rows, size, dtype=torch.bool)
        kept.scatter_(1, distinct(rows, size, size - count, generator), False)
        return kept.nonzero()[:, 1].view(rows, count)
    drawn = torch.randint(size, (rows, count), generator=generator).sort(1).values
    while bool((again := drawn[:, 1:] == drawn[:, :-1]).any()):
        drawn[:, 1:][again] = torch.randint(size, (int(again.sum()),), generator=generator)
        drawn = drawn.sort(1).values
    return drawn
