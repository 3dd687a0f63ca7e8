"""ITOP: SET or RigL with long intervals, so that nearly every weight is tried once and given time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import drawn
from spfde.topology.schedule import Cosine


class ITOP(RigL):
    """In-time over-parametrisation: drops the smallest |w|, grows at random or by gradient, over the whole training.

    The moved share falls as a cosine from 0.5 to 0.005 and never ends. What counts is how much of the dense weight was
    ever stored: `topology.explored` is R_s. Source: ITOP (2102.02887). Its code draws Bernoulli masks, so that its
    counts drift; here they are exact.

    growth: "random" (SET-ITOP) or "gradient" (RigL-ITOP). every: None is 1500 for random growth, 4000 by gradient, as
    published. The rest: see Topology.

    Raises:
        ValueError: see Topology; or growth names neither.
    """

    default_drop = 0.5
    least = 0.005

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int | None = None,
        drop_fraction: float | None = None,
        seed: int = 0,
        growth: str = "random",
    ) -> None:
        if growth not in ("random", "gradient"):
            raise ValueError(f"expected growth 'random' or 'gradient', got {growth!r}")
        self.grows_by_gradient = growth == "gradient"
        every = every if every is not None else 4000 if self.grows_by_gradient else 1500
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed, end=1.0
        )
        first = self.schedule(0)
        self.schedule = Cosine(first, total_steps, min(self.least, first))

    def _grow(self, name: str, layer: SparseLayer, kept: Tensor, need: Tensor, group: Tensor) -> Tensor:
        if self.grows_by_gradient:
            return super()._grow(name, layer, kept, need, group)
        return drawn(group, kept, need, self._generator)
