"""DSR: one magnitude threshold for the whole model, freed weights go where weights survive."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from spfde.sparse.no_sync import nonzero_all
from spfde.topology.layers import LayerState
from spfde.topology.methods.redistribution import Redistribution
from spfde.topology.options import option


class DSR(Redistribution):
    """Drops |w| < H for one H over all layers, shares what was freed out by survivors, grows at random.

    H doubles after an update that dropped less than (1 - tolerance) times the wanted number, drop_fraction of all
    stored weights, and halves after one that dropped more than (1 + tolerance) times it. A layer's largest stays.
    A block's magnitude is the mean over its weights. Source: dynamic sparse reparameterization (1902.05967).
    """

    reset_regrown = True
    threshold: float = option(1e-3, "(0, inf)", "H at the start")
    tolerance: float = option(0.1, "[0, 1)", "how far the dropped number may be from the wanted one, as a share of it")

    def score(self, layer: LayerState) -> Tensor:
        return super().score(layer) / prod(layer.grid.block)

    def keep_all(self, layers: Mapping[str, LayerState], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: score >= self.threshold for name, score in scores.items()}
        for name, score in scores.items():
            if score.numel():
                kept[name].index_fill_(0, score.argmax().view(1), True)
        return nonzero_all(kept)

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        counts = super().counts(layers, kept)
        stored = sum(layer.nnz for layer in layers.values())
        dropped = stored - sum(slots.numel() for slots in kept.values())
        wanted = self.drop_share(self.steps_done) * stored
        if dropped < (1 - self.tolerance) * wanted:
            self.threshold *= 2
        elif dropped > (1 + self.tolerance) * wanted:
            self.threshold /= 2
        return counts

    def own_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.threshold = state["threshold"]
