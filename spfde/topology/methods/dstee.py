"""DST-EE: grow by gradient, plus a bonus for weights that were seldom active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import highest


class DSTEE(RigL):
    """Drops the smallest |w| and grows where |dL/dw| + c ln(t) / (N + eps) is largest.

    N counts the rounds in which a weight was stored: 1 for the first mask, one more after every update. t is the
    optimizer step. Everything else is RigL's, and c = 0 is RigL. Source: DST-EE (2211.16667), which does not state c
    and eps.

    c: None chooses it at every update and for each layer so that a weight that was never stored gets a bonus,
    c ln(t) / eps, as large as the gradient at which RigL would just grow: an unseen weight with any gradient then beats
    a seen one at that edge, and only weights with a clearly larger gradient come before it. A number is in units of the
    gradient as the optimizer step sees it (unscaled, averaged). eps: > 0; 1 halves the bonus after one round, smaller
    values let it fall off faster. The counters take two bytes for every dense weight (block).
    The rest: see RigL and Topology.

    Raises:
        ValueError: see RigL; or c is negative, or eps is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        end: float = 0.75,
        c: float | None = None,
        eps: float = 1.0,
    ) -> None:
        if c is not None and c < 0:
            raise ValueError(f"expected c >= 0, got {c}")
        if eps <= 0:
            raise ValueError(f"expected eps > 0, got {eps}")
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed, end=end
        )
        self.c, self.eps = c, eps
        self.rounds = {
            name: torch.zeros(layer.grid.size, dtype=torch.int16, device=layer.values.device)
            for name, layer in self.layers.items()
        }
        self._count(self.layers)

    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        live = self._live()
        moved = super().update()
        self._count(live)
        return moved

    def _count(self, layers: Mapping[str, SparseLayer]) -> None:
        for name, layer in layers.items():
            self.rounds[name][layer.positions()] += 1

    def _growth(self, name: str, kept: Tensor, need: Tensor, group: Tensor) -> Iterator[tuple[int, Tensor]]:
        probe = self._watch.probes[name]
        slabs = list(probe.magnitudes())  # held, as the edge comes before the growth
        if self.c is None:
            edge = highest(slabs, group, kept, need.sum().view(1).cpu())[1]
            strength = edge.min().double() * self.eps if edge.numel() else 0.0
        else:
            scale = probe.scale()
            strength = scale.new_full((), self.c * log(max(1, self._step))) / scale
        rounds = self.rounds[name]
        for first, score in slabs:
            yield first, score + strength * (rounds[first : first + score.numel()] + self.eps).reciprocal()

    def _own_state(self) -> dict[str, Any]:
        return {"rounds": {name: rounds.clone() for name, rounds in self.rounds.items()}}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        for name, rounds in state["rounds"].items():
            self.rounds[name].copy_(rounds)
