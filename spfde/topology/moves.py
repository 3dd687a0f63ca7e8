"""What an update does to one layer, as pure functions of scores, groups and counts.

Groups are what a pattern counts in (`Pattern.groups`): the layer, an output, m neighbours. Ties always
go to the lower position. Counts of one group are in main memory, and nothing then waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spfde.sparse import no_sync
from spfde.sparse.no_sync import count_each, nonzero
from spfde.topology.topk import descending, edge, first_in_groups, keep_highest, keep_highest_in_groups


def count_groups(group: Tensor, groups: int, positions: Tensor | None = None) -> Tensor:
    """How many of the positions (all if None) are in each group [groups]; of one group as `Pattern.quota` has it."""
    if groups == 1:
        return torch.tensor([(group if positions is None else positions).numel()])
    return count_each(group if positions is None else group[positions], groups)


def without_lowest(score: Tensor, group: Tensor, room: Tensor, count: int) -> Tensor:
    """Which stored blocks stay (slots, ascending) when the `count` lowest scores drop, at most room[g] of a group.

    Of equal scores the last one is dropped first. score, group: [nnz]. room: [groups].
    """
    if room.numel() == 1:
        return keep_highest(score, score.numel() - min(count, int(room)))
    order = descending(score).flip(0)
    droppable = order[first_in_groups(group[order], room)]
    stays = torch.ones_like(score, dtype=torch.bool)
    stays[droppable[:count]] = False
    return nonzero(stays)


def drawn(group: Tensor, kept: Tensor, need: Tensor, generator: torch.Generator) -> Tensor:
    """`need[g]` distinct positions of each group g outside `kept`, all equally likely.

    group: [grid size]. kept: positions [n], ascending. need: [groups].
    """
    if need.numel() == 1:
        rank = _subset(group.numel() - kept.numel(), int(need), generator).to(kept.device, non_blocking=True)
        # Before the position of a free rank lie the kept ones that have no more free ones before them than that.
        before = kept - torch.arange(kept.numel(), device=kept.device)
        return rank + torch.searchsorted(before, rank, right=True)
    noise = torch.rand(group.numel(), generator=generator, dtype=torch.float64)
    return highest([(0, noise.to(kept.device, non_blocking=True))], group, kept, need)[0]


def highest(slabs: Iterable[tuple[int, Tensor]], group: Tensor, kept: Tensor, need: Tensor) -> tuple[Tensor, Tensor]:
    """The `need[g]` positions (ascending) of each group g outside `kept` with the highest scores, and these scores.

    slabs: (first position, scores of the positions from there on), ascending, whole groups each unless there is only
    one; only the best so far are held. group: [grid size]. kept: ascending. need: [groups].
    """
    whole, best, scores = need.numel() == 1, kept.new_empty(0), torch.empty(0, device=kept.device)
    if not int(need.sum()):
        return best, scores
    taken = torch.zeros(group.numel(), dtype=torch.bool, device=kept.device)
    taken[kept] = True
    for first, score in slabs:
        score = score.nan_to_num(torch.inf, torch.inf, -torch.inf)
        score = score.masked_fill_(taken[first : first + score.numel()], -torch.inf)
        if not whole:
            inside = group[first : first + score.numel()]
            place = _promising(score, inside, group.numel() // need.numel(), int(need.max()))
            place = place[keep_highest_in_groups(score[place], inside[place], need)]
        elif best.numel() < int(need) or no_sync.is_async(score):
            place = keep_highest(score, int(need))
        else:  # only what is above the worst so far
            place = nonzero(score > scores.min())
        best, scores = torch.cat([best, first + place]), torch.cat([scores.to(score), score[place]])
        if whole and best.numel() > int(need):
            chosen = keep_highest(scores, int(need))
            best, scores = best[chosen], scores[chosen]
    return best, scores


def share(total: int, weight: Mapping[str, float], limit: Mapping[str, int]) -> dict[str, int]:
    """Splits `total` in proportion to `weight`, no part above its limit, the sum exact.

    What a full part cannot take goes to the others, again in proportion; single units by largest remainder, ties in
    order. Parts of weight 0 get something only when the others are full.

    Raises:
        ValueError: the limits hold less than `total`.
    """
    if total > sum(limit.values()):
        raise ValueError(f"expected room for {total}, got {sum(limit.values())}, try more headroom")
    parts = dict.fromkeys(weight, 0)
    left = total
    while left:
        open_ = [name for name in parts if parts[name] < limit[name]]
        pull = {name: weight[name] for name in open_ if weight[name] > 0} or dict.fromkeys(open_, 1.0)
        scale = left / sum(pull.values())
        exact = {name: min(pull[name] * scale, limit[name] - parts[name]) for name in pull}
        whole = {name: int(amount) for name, amount in exact.items()}
        if not any(whole.values()):
            name = max(exact, key=lambda name: exact[name])
            whole[name] = 1
        for name, amount in whole.items():
            parts[name] += amount
            left -= amount
    return parts


def ascending(size: int, *parts: Tensor) -> Tensor:
    """The positions in `parts`, all below `size` and none of them twice, in order."""
    there = torch.zeros(size, dtype=torch.bool, device=parts[0].device)
    for part in parts:
        there[part] = True
    return nonzero(there, sum(part.numel() for part in parts))


def _subset(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` numbers below `size`, ascending; every set of them is equally likely."""
    if 2 * count > size:
        there = torch.ones(size, dtype=torch.bool)
        there[_subset(size, size - count, generator)] = False
        return nonzero(there)
    chosen = torch.empty(0, dtype=torch.int64)
    while chosen.numel() < count:  # what was drawn twice is drawn again: no number is preferred, so no set is
        more = torch.randint(size, (count - chosen.numel(),), generator=generator)
        chosen = torch.cat([chosen, more]).unique()
    return chosen


def _promising(score: Tensor, group: Tensor, length: int, most: int) -> Tensor:
    """Where a score may be among the `most` highest of its group: not at -inf, few if groups are runs of one length."""
    free = score > -torch.inf
    if 0 < most < length and score.numel() % length == 0:
        rows, of_rows = score.view(-1, length), group.view(-1, length)
        if bool((of_rows == of_rows[:, :1]).all()):
            free &= (rows >= edge(rows, most).unsqueeze(1)).view(-1)
    return nonzero(free)
