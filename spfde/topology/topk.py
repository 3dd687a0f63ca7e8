"""The highest scores: over all, in groups, over layers. Ties go to the lower position, counts are exact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from spfde.sparse import no_sync
from spfde.sparse.no_sync import count_each, nonzero

CHUNK = 2**18  # scores that are looked at together where there are many


def among_highest(score: Tensor, count: int) -> Tensor:
    """Which scores (bool [n]) are among the `count` highest, ties to the lower position: always exactly `count`.

    NaN counts as the highest score.
    """
    if not 0 < count < score.numel():
        return torch.full_like(score, count > 0, dtype=torch.bool)
    score = torch.nan_to_num(score, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = edge(score, count)
    chosen = score >= least
    if not no_sync.is_async(score) and int(chosen.count_nonzero()) == count:
        return chosen
    above, tied = score > least, score == least
    return above | (tied & (tied.cumsum(0) <= count - above.count_nonzero()))


def edge(score: Tensor, count: int) -> Tensor:
    """The lowest of the `count` highest scores [..., n], over the last dimension."""
    if no_sync.is_async(score):
        return score.topk(count, sorted=False).values.amin(-1)
    # A partition: numpy's takes a tenth of the time of torch's selection, a hundredth of a sort's.
    score = score.detach() if score.dtype != torch.bfloat16 else score.detach().float()
    place = score.shape[-1] - count
    return torch.as_tensor(np.partition(score.numpy(), place)[..., place])


def keep_highest(score: Tensor, count: int) -> Tensor:
    """Ascending positions (int64) of the `count` highest scores, as `among_highest` has them."""
    if score.numel() > 4 * CHUNK and 0 < count < score.numel() and score.dtype == torch.float32 and score.is_cpu:
        return _of_many(score, count)
    return nonzero(among_highest(score, count), min(max(0, count), score.numel()))


def _of_many(score: Tensor, count: int) -> Tensor:
    """`keep_highest` of many float32 scores on a CPU, part by part: what it takes follows what is kept.

    The edge is found as a radix selection does, by the upper half of the keys and then among those that share it.
    """
    parts = score.detach().split(CHUNK)
    counts = sum(torch.bincount(_keys(part) >> 16, minlength=2**16) for part in parts)
    above = counts.flip(0).cumsum(0)
    last = int(torch.searchsorted(above, count))  # counted from the highest
    upper, left = 2**16 - 1 - last, count - (int(above[last - 1]) if last else 0)
    shared = torch.cat([keys[keys >> 16 == upper] for keys in map(_keys, parts)])
    least = int(np.partition(shared.numpy(), len(shared) - left)[len(shared) - left])
    ties = left - int((shared > least).sum())
    found = []
    for start, part in zip(range(0, score.numel(), CHUNK), parts, strict=True):
        keys = _keys(part)
        kept = keys > least
        if ties:
            tied = nonzero(keys == least)[:ties]
            kept[tied] = True
            ties -= tied.numel()
        found.append(nonzero(kept) + start)
    return torch.cat(found)


def _keys(score: Tensor) -> Tensor:
    """Whole numbers in [0, 2^32) in the order of float32 scores, NaN the highest, the two zeros one (int64)."""
    bits = (score.nan_to_num(torch.inf, torch.inf, -torch.inf) + 0.0).view(torch.int32)
    return torch.where(bits < 0, ~bits ^ -(2**31), bits).long() + 2**31


def first_in_groups(group: Tensor, quota: Tensor) -> Tensor:
    """Which entries (bool) are among the first `quota[g]` of their group g, in the order given.

    group: [n] int64. quota: [number of groups] int64.
    """
    place = torch.arange(group.numel(), device=group.device)
    if quota.numel() == 1:
        return place < int(quota)
    of, order = torch.sort(group.to(torch.int32), stable=True)
    held = count_each(group, quota.numel())
    rank = place - (held.cumsum(0) - held).index_select(0, of)
    return torch.zeros_like(place, dtype=torch.bool).scatter_(0, order, rank < quota.index_select(0, of))


def keep_highest_in_groups(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Ascending positions (int64) of the `quota[g]` highest scores of every group g, ties to the lower position."""
    if quota.numel() == 1:
        return keep_highest(score, int(quota))
    order = descending(score)
    return order[first_in_groups(group[order], quota)].sort().values


def descending(score: Tensor) -> Tensor:
    """The order [n] of falling scores, ties to the lower position."""
    if score.dtype != torch.float32:
        return torch.sort(score, descending=True, stable=True).indices
    # The bits of a float, as whole numbers (those of a negative one mirrored), have its order, and sort six times
    # faster. Adding 0 makes one zero of the two.
    bits = (score.nan_to_num(torch.inf, torch.inf, -torch.inf) + 0.0).view(torch.int32)
    return torch.sort(~torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits), stable=True).indices


def keep_globally(layer_scores: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """How many of the `count` highest scores over all layers fall into each; no layer with weights gets none."""
    names = list(layer_scores)
    sizes = [layer_scores[name].numel() for name in names]
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes))
    kept = keep_highest(torch.cat([layer_scores[name].cpu() for name in names]), count)
    counts = torch.bincount(owner[kept], minlength=len(names)).tolist()
    floor = [min(1, size) for size in sizes] if count else [0] * len(names)
    # A layer lifted to one weight takes it from the largest, so that the total stays exact.
    for i, least in enumerate(floor):
        if counts[i] < least and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
        counts[i] = max(counts[i], least)
    return dict(zip(names, counts, strict=True))
