"""Methods that make weights 0 by the training itself: dense at first, stored sparse as soon as the count allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spfde.nn import SparseLayer
from spfde.sparse.index import permute
from spfde.topology.layers import LayerState, magnitude
from spfde.topology.methods.gmp import GMP
from spfde.topology.options import option
from spfde.topology.schedule import cubic


class Shrinking(GMP):
    """Layers start full; an update stores no longer, for good, what the training has shut, down to the target count.

    From `begin` on the count is bounded too, by GMP's cubic, which ends exactly at the target. A layer that is sparse
    at first is opened with draws from its stored weights, as if the dense initialisation had been kept.

    A method says what is shut (`strength`) and keeps what it knows of every slot in `memory`, by layer and key.
    """

    transforms = ()
    begin: float = option(0.5, "[0, 1]", "share of the training after which the count is bounded as well")
    memory: dict[str, dict[str, Tensor]]

    def setup(self) -> None:
        first = {name: layer.positions() for name, layer in self.live().items()}
        self.memory = {}
        super().setup()
        with torch.no_grad():
            for name, positions in first.items():
                self._draw(self.layers[name], positions)

    def strength(self, layer: LayerState) -> Tensor:
        """How much each stored block [nnz] should stay, 0 where it is shut. The magnitude."""
        return magnitude(layer.module)

    def wanted(self, name: str) -> int:
        """How many blocks of a layer the training should have left by now: the target from `begin` on."""
        above = self._start[name] - self.target[name]
        return self.target[name] + round(above * cubic(self.steps_done, 0, max(1, self.begin * self.total_steps)))

    @property
    def over(self) -> bool:
        """Whether every layer is at its target for good: the rest of the training is that of a fixed mask."""
        return self.steps_done > self.end * self.total_steps

    def score(self, layer: LayerState) -> Tensor:
        return self.strength(layer) if self.steps_done else super().score(layer)

    def final_score(self, layer: LayerState) -> Tensor:
        return self.strength(layer)

    def keep_slots(self, layer: LayerState, score: Tensor) -> Tensor:
        if not self.steps_done:  # the opening
            return super().keep_slots(layer, score)
        left = max(int(score.count_nonzero()), self.target[layer.name])
        return layer.highest(score, min(layer.nnz, left, self.count_at(layer.name, self.steps_done)))

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        if not self.steps_done:
            return super().counts(layers, kept)
        return {name: slots.numel() for name, slots in kept.items()}

    def learning_rates(self) -> dict[str, float]:
        """The optimizer's for the values of every layer that may move, by name."""
        rates = {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: rates[id(layer.values)] for name, layer in self.live().items()}

    def _draw(self, layer: SparseLayer, before: Tensor) -> None:
        """Gives the slots that were opened values drawn from those that were there before."""
        positions = layer.positions()
        old = torch.isin(positions, before)
        stored, opened = layer.values[: layer.nnz], int((~old).count_nonzero())
        if opened and before.numel():
            drawn = torch.randint(before.numel(), (opened,), generator=self.generator).to(stored.device)
            stored[~old] = stored[old][drawn]

    def slots_moved(self, layer: LayerState, source: Tensor) -> None:
        for remembered in self.memory.get(layer.name, {}).values():
            permute(remembered, source)

    def own_state(self) -> dict[str, Any]:
        return {"memory": {n: {key: kept.clone() for key, kept in own.items()} for n, own in self.memory.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        devices = {name: layer.values.device for name, layer in self.layers.items()}
        self.memory = {
            name: {key: kept.to(devices[name], copy=True) for key, kept in own.items()}
            for name, own in state["memory"].items()
        }
