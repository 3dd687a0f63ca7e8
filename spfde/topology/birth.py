"""Birth of a mask: which weights a new sparse layer keeps."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

INITS = ("random", "magnitude")


def scores(weights: Mapping[str, Tensor], init: str, seed: int) -> dict[str, Tensor]:
    """A score per weight (flat, by layer); the highest are kept.

    "random": seeded noise. "magnitude": the absolute value.
    """
    if init == "magnitude":
        return {name: weight.detach().reshape(-1).abs() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.numel(), generator=generator).to(weight.device) for name, weight in weights.items()}


def keep_highest(score: Tensor, count: int) -> Tensor:
    """Ascending positions (int64) of the `count` highest scores, ties to the lower position: always exactly `count`."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values


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


def masks(
    weights: Mapping[str, Tensor], counts: Mapping[str, int], layer_scores: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Bool masks of the dense shapes that keep `counts[name]` weights of each layer."""
    out = {}
    for name, weight in weights.items():
        mask = torch.zeros(prod(weight.shape), dtype=torch.bool, device=weight.device)
        mask[keep_highest(layer_scores[name], counts[name])] = True
        out[name] = mask.view(weight.shape)
    return out
