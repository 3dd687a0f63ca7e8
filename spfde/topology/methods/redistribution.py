"""Parameter redistribution: the total count is constant, the count of a layer is not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spfde.topology.base import Topology
from spfde.topology.layers import LayerState
from spfde.topology.moves import share
from spfde.topology.options import option


class Redistribution(Topology):
    """A method that frees blocks everywhere and hands them out again over the layers (`layer_weight` says how).

    The total over the layers that move is constant. A layer may grow up to `headroom` times the count it started with:
    that much room is reserved in `values` (and so in the optimizer's state) at the start.
    """

    refused = ("n:m",)
    headroom: float = option(2.0, "[1, inf)", "the most that a layer may grow to, in multiples of its first count")

    def setup(self) -> None:
        self.reserve({name: int(self.headroom * count) for name, count in self.target.items()})

    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        moved = super().update()
        self.target = {name: layer.nnz for name, layer in self.layers.items()}
        return moved

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        held = {name: slots.numel() for name, slots in kept.items()}
        room = {name: layer.module.values.shape[0] for name, layer in layers.items()}
        # One slot and no weight: a layer that was asked to store nothing holds it for optimizers alone.
        limit = {n: 0 if room[n] == 1 and not layer.nnz else room[n] - held[n] for n, layer in layers.items()}
        freed = sum(layer.nnz for layer in layers.values()) - sum(held.values())
        given = self.allocate(freed, layers, held, limit)
        return {name: held[name] + given[name] for name in layers}

    def allocate(
        self, freed: int, layers: Mapping[str, LayerState], held: Mapping[str, int], limit: Mapping[str, int]
    ) -> dict[str, int]:
        """How many of the freed blocks each layer gets, at most its limit. In proportion to `layer_weight`.

        held: blocks that each layer kept.
        """
        return share(freed, self.layer_weight(layers, held), limit)

    def layer_weight(self, layers: Mapping[str, LayerState], held: Mapping[str, int]) -> dict[str, float]:
        """Each layer's claim on what was freed, >= 0. The number of its survivors."""
        return {name: float(held[name]) for name in layers}
