"""GMP: gradual magnitude pruning."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spfde.topology.allocation import erk, stored_count, uniform
from spfde.topology.layers import LayerState
from spfde.topology.methods.scheduled import Scheduled
from spfde.topology.options import option
from spfde.topology.reparam.powerprop import Powerprop
from spfde.topology.schedule import cubic

SPREADS = {"uniform": uniform, "erk": erk}


class GMP(Scheduled):
    """Prunes every layer by |w| from a high count down to its target, fast at first (a cubic), never growing.

    n(t) = target + (start - target) (1 - (t - begin) / (end - begin))^3. The target is the model's own sparsity at the
    start, or `sparsity`, spread over the layers by `distribution`; layers are opened to `initial_sparsity` first, at
    random, the opened weights at 0. To prune a dense network from its own initial weights, as published:
    spfde.sparsify(model, 0.0), then GMP(sparsity=0.9). Source: To prune or not to prune (1710.01878).
    """

    transforms = (Powerprop,)
    sparsity: float | None = option(None, "[0, 1]", "fraction of zeros at the end; None: of every layer as it is now")
    distribution: str = option("uniform", tuple(SPREADS), "how that spreads over layers: the same in each, or by erk")
    initial_sparsity: float = option(0.0, "[0, 1]", "fraction of zeros of every layer at the start")
    begin: float = option(0.0, "[0, 1]", "share of the training after which it prunes")
    end: float = option(0.75, "[0, 1]", "share of the training after which every layer is at its target")

    def check_options(self) -> None:
        if not self.begin < self.end:
            raise ValueError(f"expected begin < end (shares of the training), got {self.begin} and {self.end}")
        if self.sparsity is None and self.distribution != "uniform":
            raise ValueError(
                f"expected sparsity with distribution={self.distribution!r}, got None, by which every layer ends at its"
                " own, try sparsity=0.9"
            )

    def setup(self) -> None:
        sizes = {name: layer.grid.size for name, layer in self.layers.items()}
        self._start = {name: max(self.target[name], stored_count(self.initial_sparsity, sizes[name])) for name in sizes}
        if self.sparsity is not None:
            shapes = {name: tuple(layer.dense_shape) for name, layer in self.layers.items()}
            counts = SPREADS[self.distribution](shapes, self.sparsity, sizes)
            self.target = {name: min(self.target[name], counts[name]) for name in sizes}
        self.open(self._start)

    def count_at(self, name: str, step: int) -> int:
        above = self._start[name] - self.target[name]
        left = cubic(step, self.begin * self.total_steps, self.end * self.total_steps)
        return self.target[name] + round(above * left)

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        counts = super().counts(layers, kept)
        if not self.steps_done:  # the opening
            return counts
        return {name: min(counts[name], layer.nnz) for name, layer in layers.items()}  # one that was frozen had settled
