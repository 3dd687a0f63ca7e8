"""FreezeOut: each block's learning rate is annealed to 0 by a time of its own, and there it freezes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from spfde._names import unknown
from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share
from spfde.freezing.methods.scheduled import Scheduled
from spfde.levers import Answer, Event, Run

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "squared": lambda t: t**2,
    "cubic": lambda t: t**3,
}


class FreezeOut(Scheduled):
    """Anneals the learning rate of block i of L to 0 at t_i = curve(first + (1 - first) * i / L), where it freezes.

    t_i is a fraction of the training, the head counts as block L and trains to the end. `horizons` has the t_i and
    `lr_factors` the factors on the rate, which the recipe's block-wise cosine follows; in a loop of your own set the
    rate of each block by `lr_factor(name, progress)`.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        epochs: length of the training.
        interval: epochs between two boundaries at which blocks freeze; between t_i and the next one the rate is 0.
        fraction: share of the blocks that are annealed and frozen, in (0, 1]; the paper's is 1.
        first: t of the first block before the curve, in (0, 1).
        curve: "linear", "squared" or "cubic".
        scaled: whether rates are divided by t_i, so that all blocks move as far in all.

    Raises:
        TypeError, ValueError: as `Freezer`; `first` or `curve` is out of its range.

    Source: Brock et al. (2017), "FreezeOut: Accelerate Training by Progressively Freezing Layers".
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        epochs: int = 160,
        interval: int = 1,
        fraction: float = 1.0,
        first: float = 0.8,
        curve: str = "cubic",
        scaled: bool = True,
    ) -> None:
        check_share("first", first, "(0, 1)", 0.8)
        if curve not in CURVES:
            raise unknown("curve", curve, CURVES)
        if not isinstance(scaled, bool):
            raise ValueError(f"expected scaled to be True or False, got {scaled!r}; try True")
        self.first, self.curve, self.scaled = first, curve, scaled
        super().__init__(model, blocks, epochs=epochs, interval=interval, fraction=fraction)

    @property
    def horizons(self) -> dict[str, float]:
        """The fraction of the training at which the learning rate of each block reaches 0."""
        return {block.name: self._time(place) for place, block in enumerate(self.blocks[: self._most])}

    @property
    def lr_factors(self) -> dict[str, float]:
        """By what the learning rate of each block is multiplied all along."""
        return {name: 1 / end if self.scaled else 1.0 for name, end in self.horizons.items()}

    def lr_factor(self, name: str, progress: float) -> float:
        """What to multiply the peak learning rate of a block with at a point of the training in [0, 1].

        factor * (1 + cos(pi * progress / t)) / 2, 0 from t on; the plain cosine for what never freezes.
        """
        end, factor = self.horizons.get(name, 1.0), self.lr_factors.get(name, 1.0)
        return factor * (1 + math.cos(math.pi * progress / end)) / 2 if progress < end else 0.0

    def on(self, event: Event, run: Run) -> Answer:
        """Freezes through the run what is due; the run has to anneal the rates.

        Raises:
            ValueError: it does not: the recipe has no block-wise cosine.
        """
        if self._epoch < 0:
            self._check_rates(run)
        return super().on(event, run)

    def _check_rates(self, run: Run) -> None:
        ends = {group.get("block"): group.get("horizon") for group in run.optimizer.param_groups}
        if any(ends.get(name) != end for name, end in self.horizons.items()):
            raise ValueError(
                "expected a run that anneals each block's learning rate, got one without block-wise cosine; "
                "try schedule='cosine' and block_cosine=True"
            )

    def _time(self, place: int) -> float:
        return CURVES[self.curve](self.first + (1 - self.first) * place / len(self.blocks))

    def _starts(self) -> list[float]:
        return [self._time(place) * self.epochs for place in range(self._most)]

    def _why(self) -> str:
        return f"learning rates reach 0 at {', '.join(f'{end:.1%}' for end in self.horizons.values())} of the training"
