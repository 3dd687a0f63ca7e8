"""What an update does to one layer, as pure functions of scores, groups and counts.

Groups are what a pattern counts in (`spfde.structure.Pattern.groups`): the layer, an output, m neighbours. Ties always
go to the lower position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spfde.topology.birth import first_in_groups


def without_lowest(score: Tensor, group: Tensor, room: Tensor, count: int) -> Tensor:
    """Which stored blocks stay (bool [nnz]) when the `count` lowest scores are dropped, at most room[g] of a group.

    Of equal scores the last one is dropped first. score, group: [nnz]. room: [groups].
    """
    order = torch.sort(score, descending=True, stable=True).indices.flip(0)
    droppable = order[first_in_groups(group[order], room)]
    stays = torch.ones_like(score, dtype=torch.bool)
    stays[droppable[:count]] = False
    return stays


def drawn(group: Tensor, kept: Tensor, need: Tensor, generator: torch.Generator) -> Tensor:
    """`need[g]` distinct positions of each group g outside `kept`, all equally likely.

    group: [grid size]. kept: positions [n]. need: [groups].
    """
    candidates = _free(group, kept).nonzero().view(-1)
    order = torch.randperm(candidates.numel(), generator=generator)
    candidates = candidates[order.to(candidates.device)]
    return candidates[first_in_groups(group[candidates], need)]


def highest(slabs: Iterable[tuple[int, Tensor]], group: Tensor, kept: Tensor, need: Tensor) -> tuple[Tensor, Tensor]:
    """The `need[g]` positions of each group g outside `kept` with the highest scores, and these scores.

    slabs: (first position, scores of the positions from there on), ascending, whole groups each unless there is only
    one; only the best so far are held. group: [grid size]. need: [groups].
    """
    free, whole = _free(group, kept), need.numel() == 1
    best, scores = kept.new_empty(0), None
    for first, score in slabs:
        inside = free[first : first + score.numel()].nonzero().view(-1)
        place, score = inside + first, score[inside]
        if scores is None:
            scores = score.new_empty(0)
        if whole:  # the best so far compete again, in front: ties go to the lower position
            place, score = torch.cat([best, place]), torch.cat([scores, score])
        order = torch.sort(score, descending=True, stable=True).indices
        order = order[: int(need)] if whole else order[first_in_groups(group[place[order]], need)]
        place, score = place[order], score[order]
        best, scores = (place, score) if whole else (torch.cat([best, place]), torch.cat([scores, score]))
    return best, torch.empty(0) if scores is None else scores


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


def _free(group: Tensor, kept: Tensor) -> Tensor:
    free = torch.ones_like(group, dtype=torch.bool)
    free[kept] = False
    return free
