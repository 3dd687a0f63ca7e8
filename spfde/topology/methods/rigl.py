"""RigL: drop the smallest weights, grow where the dense gradient is largest."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from spfde.topology.base import Topology
from spfde.topology.layers import LayerState
from spfde.topology.moves import highest
from spfde.topology.options import option
from spfde.topology.schedule import cosine


class RigL(Topology):
    """Drops the stored weights with the smallest |w| and grows as many where |dL/dw| of the dense weight is largest.

    The count per layer never changes. Growth chooses from everything that was not kept; a weight that is dropped and
    grown again keeps its value and optimizer state. The moved share falls as a cosine from drop_fraction to 0 at
    `end` of the training. The update follows the optimizer step, where the authors' code lets it take the step's place.
    Source: RigL (1911.11134): every 100 steps, share 0.3, end at 3/4.

    The dense gradient exists only for the step before an update, in slabs of rows, see `spfde.topology.probes`.
    """

    grows_by_gradient = True
    sharded = True
    end: float = option(0.75, "(0, 1]", "share of the training after which nothing moves")

    def due(self, step: int) -> bool:
        return super().due(step) and step < self.end * self.total_steps

    def drop_share(self, step: int) -> float:
        return cosine(step, self.drop_fraction, self.end * self.total_steps)

    def grow(self, layer: LayerState, kept: Tensor, need: Tensor) -> Tensor:
        return highest(self.growth_score(layer, kept, need), layer.group, kept, need)[0]

    def growth_score(self, layer: LayerState, kept: Tensor, need: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The growth score of every block, in slabs."""
        return self.gradient_magnitudes(layer)
