"""GMP: gradual magnitude pruning."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from spfde.topology.distribution import stored_count
from spfde.topology.methods.scheduled import Scheduled
from spfde.topology.reparam.powerprop import Powerprop
from spfde.topology.schedule import Cubic


class GMP(Scheduled):
    """Prunes every layer by |w| from a high count down to its target, fast at first (a cubic), never growing.

    n(t) = target + (start - target) (1 - (t - begin) / (end - begin))^3. The target is the model's own sparsity at the
    start, or `sparsity`; layers are opened to `initial_sparsity` first, at random, the opened weights at 0. To prune a
    dense network from its own initial weights, as published: spfde.sparsify(model, 0.0), then GMP(sparsity=0.9).
    Source: To prune or not to prune (1710.01878).

    sparsity: of every layer at the end; None: what it has now. initial_sparsity: at the start, dense by default.
    begin, end: shares of the training between which it prunes. drop_fraction: has no meaning here. The rest: see
    Topology.

    Raises:
        ValueError: see Topology; or a sparsity is outside [0, 1], or not 0 <= begin < end <= 1.
    """

    transforms = (Powerprop,)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        begin: float = 0.0,
        end: float = 0.75,
    ) -> None:
        for what, given in (("sparsity", sparsity), ("initial_sparsity", initial_sparsity)):
            if given is not None and not 0 <= given <= 1:
                raise ValueError(f"expected {what} in [0, 1], got {given} (it is the fraction of zeros)")
        if not 0 <= begin < end <= 1:
            raise ValueError(f"expected 0 <= begin < end <= 1 (shares of the training), got {begin} and {end}")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.schedule = Cubic(begin * total_steps, end * total_steps)
        sizes = {name: layer.grid.size for name, layer in self.layers.items()}
        self._start = {name: max(self.target[name], stored_count(initial_sparsity, sizes[name])) for name in sizes}
        if sparsity is not None:
            self.target = {name: min(self.target[name], stored_count(sparsity, sizes[name])) for name in sizes}
        self._open(self._start)

    def _count_at(self, name: str, step: int) -> int:
        above = self._start[name] - self.target[name]
        return self.target[name] + round(above * self.schedule(step))
