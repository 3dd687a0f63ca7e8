"""Methods whose layers exchange blocks: the total is constant, the count of a layer is not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.moves import share


class Exchanging(Topology):
    """A method that frees blocks everywhere and hands them out again over the layers (`_pull` says how).

    The total over the layers that move is constant. A layer may grow up to `headroom` times the count it started with:
    that much room is reserved in `values` (and so in the optimizer's state) at the start.

    Raises:
        ValueError: see Topology; or headroom is below 1.
    """

    refused = ("n:m",)

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
    ) -> None:
        if headroom < 1:
            raise ValueError(f"expected headroom >= 1 (times the first count of a layer), got {headroom}")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.headroom = headroom
        self._reserve({name: int(headroom * count) for name, count in self.target.items()})

    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        moved = super().update()
        self.target = {name: layer.nnz for name, layer in self.layers.items()}  # a settled layer keeps what it has
        return moved

    def _counts(self, live: Mapping[str, SparseLayer], stays: Mapping[str, Tensor]) -> dict[str, int]:
        kept = {name: stay.numel() for name, stay in stays.items()}
        limit = {name: layer.values.shape[0] - kept[name] for name, layer in live.items()}
        freed = sum(layer.nnz for layer in live.values()) - sum(kept.values())
        given = self._given(freed, live, kept, limit)
        return {name: kept[name] + given[name] for name in live}

    def _given(
        self, freed: int, live: Mapping[str, SparseLayer], kept: Mapping[str, int], limit: Mapping[str, int]
    ) -> dict[str, int]:
        """How many of the freed blocks each layer gets, in proportion to its pull."""
        return share(freed, self._pull(live, kept), limit)

    def _pull(self, live: Mapping[str, SparseLayer], kept: Mapping[str, int]) -> dict[str, float]:
        """Each layer's claim on what was freed, >= 0. The number of its survivors."""
        return {name: float(kept[name]) for name in live}
