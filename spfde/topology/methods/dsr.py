"""DSR: one magnitude threshold for the whole model, freed weights go where weights survive."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.no_sync import find_all
from spfde.topology.layers import magnitude
from spfde.topology.methods.exchanging import Exchanging


class DSR(Exchanging):
    """Drops |w| < H for one H over all layers, shares what was freed out by survivors, grows at random.

    H doubles after an update that dropped less than (1 - tolerance) times the wanted number, drop_fraction of all
    stored weights, and halves after one that dropped more than (1 + tolerance) times it. A layer's largest stays.
    A block's magnitude is the mean over its weights. Source: dynamic sparse reparameterization (1902.05967).

    threshold: H at the start, > 0. tolerance: in [0, 1). The rest: see Exchanging and Topology.

    Raises:
        ValueError: see Exchanging; or threshold or tolerance is out of range.
    """

    forgets = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        headroom: float = 2.0,
        threshold: float = 1e-3,
        tolerance: float = 0.1,
    ) -> None:
        if threshold <= 0:
            raise ValueError(f"expected threshold > 0, got {threshold}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"expected tolerance in [0, 1), got {tolerance}")
        self.threshold, self.tolerance = threshold, tolerance
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed,
            headroom=headroom,
        )  # fmt: skip

    def _score(self, name: str, layer: SparseLayer) -> Tensor:
        return magnitude(layer) / prod(layer.grid.block)

    def _all_stay(self, live: Mapping[str, SparseLayer], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stay = {name: score >= self.threshold for name, score in scores.items()}
        for name, score in scores.items():
            if score.numel():
                stay[name].index_fill_(0, score.argmax().view(1), True)
        return find_all(stay)

    def _counts(self, live: Mapping[str, SparseLayer], stays: Mapping[str, Tensor]) -> dict[str, int]:
        counts = super()._counts(live, stays)
        stored = sum(layer.nnz for layer in live.values())
        dropped, wanted = stored - sum(stay.numel() for stay in stays.values()), self.schedule(self._step) * stored
        if dropped < (1 - self.tolerance) * wanted:
            self.threshold *= 2
        elif dropped > (1 + self.tolerance) * wanted:
            self.threshold /= 2
        return counts

    def _own_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self.threshold = state["threshold"]
