"""GaP: one partition of the layers at a time is grown dense, trained, and pruned back."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from spfde.topology.methods.scheduled import Scheduled


class GaP(Scheduled):
    """Grows one partition of the layers to dense, trains it for `every` steps, prunes it by |w| and goes to the next.

    Partitions are runs of consecutive layers, visited in a cycle; grown weights start at 0. Every layer is at its
    target from `end` of the training on. Source: scheduled grow-and-prune (ICLR 2022), cyclic partitions (its parallel
    ones need a replica each). Every layer is dense for a while, so all of them need the capacity of a dense one.

    partitions: >= 1. end: share of the training, in (0, 1]. drop_fraction: has no meaning here. The rest: see Topology.

    Raises:
        ValueError: see Topology; or partitions or end is out of range.
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
        partitions: int = 4,
        end: float = 0.75,
    ) -> None:
        if not 0 < end <= 1:
            raise ValueError(f"expected end in (0, 1] (share of the training), got {end}")
        if partitions < 1:
            raise ValueError(f"expected partitions >= 1, got {partitions}")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.end = end * total_steps
        self.partitions = min(partitions, len(self.layers))
        self._partition = {name: i * self.partitions // len(self.layers) for i, name in enumerate(self.layers)}
        self._open({name: layer.grid.size for name, layer in self.layers.items()})

    def _count_at(self, name: str, step: int) -> int:
        open_ = step < self.end and step // self.every % self.partitions == self._partition[name]
        return self.layers[name].grid.size if open_ else self.target[name]
