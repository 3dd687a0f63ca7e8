"""DST-EE: grow by gradient, plus a bonus for weights that were seldom active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from spfde.nn import SparseLayer
from spfde.topology.layers import LayerState
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import highest
from spfde.topology.options import option


class DSTEE(RigL):
    """Drops the smallest |w| and grows where |dL/dw| + c ln(t) / (N + eps) is largest.

    N counts the rounds in which a weight was stored: 1 for the first mask, one more after every update. t is the
    optimizer step. Everything else is RigL's, and c = 0 is RigL. Source: DST-EE (2211.16667), which does not state c
    and eps. The counters take two bytes for every dense weight (block).

    c = None chooses it at every update and for each layer so that a weight that was never stored gets a bonus,
    c ln(t) / eps, as large as the gradient at which RigL would just grow: an unseen weight with any gradient then beats
    a seen one at that edge, and only weights with a clearly larger gradient come before it.
    """

    c: float | None = option(
        None, "[0, inf)", "bonus in units of the unscaled gradient; None chooses it at every update"
    )
    eps: float = option(1.0, "(0, inf)", "1 halves the bonus after one round, smaller values let it fall off faster")

    def setup(self) -> None:
        self.rounds = {
            name: torch.zeros(layer.grid.size, dtype=torch.int16, device=layer.values.device)
            for name, layer in self.layers.items()
        }
        self._count(self.layers)

    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        live = self.live()
        moved = super().update()
        self._count(live)
        return moved

    def _count(self, layers: Mapping[str, SparseLayer]) -> None:
        for name, layer in layers.items():
            self.rounds[name][layer.positions()] += 1

    def growth_score(self, layer: LayerState, kept: Tensor, need: Tensor) -> Iterator[tuple[int, Tensor]]:
        slabs = list(self.gradient_magnitudes(layer))  # held, as the edge comes before the growth
        if self.c is None:
            edge = highest(slabs, layer.group, kept, need.sum().view(1).cpu())[1]
            strength = edge.min().double() * self.eps if edge.numel() else 0.0
        else:
            scale = self._probes.of[layer.name].scale()
            strength = scale.new_full((), self.c * log(max(1, self.steps_done))) / scale
        rounds = self.rounds[layer.name]
        for first, score in slabs:
            yield first, score + strength * (rounds[first : first + score.numel()] + self.eps).reciprocal()

    def own_state(self) -> dict[str, Any]:
        return {"rounds": {name: rounds.clone() for name, rounds in self.rounds.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name, rounds in state["rounds"].items():
            self.rounds[name].copy_(rounds)
