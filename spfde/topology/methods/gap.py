"""GaP: one partition of the layers at a time is grown dense, trained, and pruned back."""

from __future__ import annotations

from spfde.topology.methods.scheduled import Scheduled
from spfde.topology.options import option


class GaP(Scheduled):
    """Grows one partition of the layers to dense, trains it for an interval, prunes it by |w| and goes to the next.

    Partitions are runs of consecutive layers, visited in a cycle; grown weights start at 0. Every layer is at its
    target from `end` of the training on. Source: scheduled grow-and-prune (ICLR 2022), cyclic partitions (its parallel
    ones need a replica each). Every layer is dense for a while, so all of them need the capacity of a dense one.
    """

    partitions: int = option(4, "[1, inf)", "runs of layers that are dense in turn, at most as many as layers")
    end: float = option(0.75, "(0, 1]", "share of the training after which every layer is at its target")

    def setup(self) -> None:
        self.partitions = min(self.partitions, len(self.layers))
        self._partition = {name: i * self.partitions // len(self.layers) for i, name in enumerate(self.layers)}
        self.open({name: layer.grid.size for name, layer in self.layers.items()})

    def count_at(self, name: str, step: int) -> int:
        turn = self.schedule.interval(step) % self.partitions
        dense = step < self.end * self.total_steps and turn == self._partition[name]
        return self.layers[name].grid.size if dense else self.target[name]
