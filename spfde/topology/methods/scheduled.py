"""Methods whose layers hold a scheduled number of blocks, and end exactly at their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from spfde.topology.base import Topology
from spfde.topology.layers import LayerState


class Scheduled(Topology, ABC):
    """A method that gives the count of every layer at every step (`count_at`); the largest |w| stay.

    Weights that a layer opens are 0. Room for the largest count is reserved at the start.
    """

    default_drop = None
    refused = ("n:m",)

    @abstractmethod
    def count_at(self, name: str, step: int) -> int:
        """How many blocks a layer holds after an update that follows `step`."""

    def open(self, capacity: Mapping[str, int]) -> None:
        """Reserves room and brings every layer to its first count."""
        self.reserve(capacity)
        self.update()

    def keep_slots(self, layer: LayerState, score: Tensor) -> Tensor:
        return layer.highest(score, min(layer.nnz, self.count_at(layer.name, self.steps_done)))

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: self.count_at(name, self.steps_done) for name in layers}
