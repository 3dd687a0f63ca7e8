"""ITOP: SET or RigL with long intervals, so that nearly every weight is tried once and given time."""

from __future__ import annotations

from torch import Tensor

from spfde.topology.layers import LayerState
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import drawn
from spfde.topology.options import option
from spfde.topology.schedule import cosine


class ITOP(RigL):
    """In-time over-parametrisation: drops the smallest |w|, grows at random or by gradient, over the whole training.

    The moved share falls as a cosine from 0.5 to 0.005 and never ends. What counts is how much of the dense weight was
    ever stored: `topology.explored` is R_s. An update follows every 1500 steps, or 4000 with growth by gradient, unless
    `every` says otherwise. Source: ITOP (2102.02887). Its code draws Bernoulli masks, so that its counts drift; here
    they are exact.
    """

    default_drop = 0.5
    default_every = None
    least = 0.005
    end = 1.0
    growth: str = option("random", ("random", "gradient"), "where it grows: SET-ITOP or RigL-ITOP")

    def check_options(self) -> None:
        self.grows_by_gradient = self.growth == "gradient"
        self.default_every = 4000 if self.grows_by_gradient else 1500

    def drop_share(self, step: int) -> float:
        return cosine(step, self.drop_fraction, self.total_steps, min(self.least, self.drop_fraction))

    def grow(self, layer: LayerState, kept: Tensor, need: Tensor) -> Tensor:
        if self.grows_by_gradient:
            return super().grow(layer, kept, need)
        return drawn(layer.group, kept, need, self.generator)
