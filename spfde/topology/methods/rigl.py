"""RigL: drop the smallest weights, grow where the dense gradient is largest."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.moves import highest
from spfde.topology.schedule import Cosine


class RigL(Topology):
    """Drops the stored weights with the smallest |w| and grows as many where |dL/dw| of the dense weight is largest.

    The count per layer never changes. Growth chooses from everything that was not kept; a weight that is dropped and
    grown again keeps its value and optimizer state. The moved share falls as a cosine from drop_fraction to 0 at
    `end` of the training. The update follows the optimizer step, where the authors' code lets it take the step's place.
    Source: RigL (1911.11134): every 100 steps, share 0.3, end at 3/4.

    The dense gradient exists only for the step before an update, in slabs of rows, see `spfde.topology.gradient`.

    end: share of the training after which nothing moves, in (0, 1]. The rest: see Topology.

    Raises:
        ValueError: see Topology; or end is out of range.
    """

    grows_by_gradient = True

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
    ) -> None:
        if not 0 < end <= 1:
            raise ValueError(f"expected end in (0, 1] (share of the training), got {end}")
        self.end = end * total_steps
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.schedule = Cosine(self.schedule(0), self.end)

    def _due(self, step: int) -> bool:
        return super()._due(step) and step < self.end

    def _grow(self, name: str, layer: SparseLayer, kept: Tensor, need: Tensor, group: Tensor) -> Tensor:
        return highest(self._growth(name, kept, need, group), group, kept, need)[0]

    def _growth(self, name: str, kept: Tensor, need: Tensor, group: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The growth score of every block, in slabs."""
        return self._watch.probes[name].magnitudes()
