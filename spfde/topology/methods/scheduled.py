"""Methods whose layers hold a scheduled number of blocks, and end exactly at their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.layers import highest


class Scheduled(Topology, ABC):
    """A method that gives the count of every layer at every step (`_count_at`); the largest |w| stay.

    Weights that a layer opens are 0. Room for the largest count is reserved at the start.
    """

    default_drop = None
    refused = ("n:m",)

    @abstractmethod
    def _count_at(self, name: str, step: int) -> int:
        """How many blocks a layer holds after an update that follows `step`."""

    def _open(self, capacity: Mapping[str, int]) -> None:
        """Reserves room and brings every layer to its first count."""
        self._reserve(capacity)
        self.update()

    def _stays(self, name: str, layer: SparseLayer, score: Tensor) -> Tensor:
        return highest(layer, score, min(layer.nnz, self._count_at(name, self._step)))

    def _counts(self, live: Mapping[str, SparseLayer], stays: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: self._count_at(name, self._step) for name in live}
