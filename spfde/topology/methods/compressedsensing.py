"""Compressed sensing: an l1 penalty that is weaker on large weights, solved by generalised dual averaging."""

from __future__ import annotations

from math import cos, pi

from torch import Tensor

from spfde.topology.methods.averaging import DualAveraging
from spfde.topology.options import option


class CompressedSensing(DualAveraging):
    """Takes off soft thresholds that grow `contrast` times as fast for weights at 0 as for the largest one.

    Each step adds lr contrast / (1 + (contrast - 1) r / max r) to a weight's threshold, where r <- beta r + (1 - beta)
    |w|: the penalty is that of log |w|. In blocks r is the mean over the block, and a block of n weights gets sqrt(n)
    times that. Source: compressed sensing (2008.09661), whose authors set lam by hand and let a (see `DualAveraging`)
    rise from 0, where thresholds do not add up, to 1, where no step forgets them and lam can be chosen.
    """

    lam: float | None = option(None, "[0, inf)", "weight of the penalty; None: chosen at every update")
    contrast: float = option(500.0, "[1, inf)", "penalty of a weight at 0 over that of the largest one of its layer")
    cosine: bool = option(False, None, "a rises as a cosine from 0 to 1, as published, which wants lam; else it is 1")
    beta: float = option(0.9, "[0, 1)", "how much of the running mean of magnitudes a step keeps")

    def check_options(self) -> None:
        super().check_options()
        if self.cosine and self.lam is None:
            raise ValueError("expected lam with cosine=True, got None, try lam=1e-4 or cosine=False")

    def setup(self) -> None:
        super().setup()
        for memory in self.memory.values():
            memory["mean"] = memory["threshold"].clone()

    def given(self) -> float | None:
        return self.lam

    def averages(self) -> float:
        if not self.cosine:
            return 1.0
        return (1 - cos(pi * min(1.0, self.steps_done / max(1.0, self.end * self.total_steps)))) / 2

    def growth(self, name: str, rate: float) -> Tensor:
        memory, (height, width) = self.memory[name], self.layers[name].grid.block
        mean = memory["mean"].lerp_(memory["before"].abs().mean((1, 2), keepdim=True), 1 - self.beta)
        share = mean / mean.max().clamp(min=1e-30)
        return rate * (height * width) ** 0.5 * self.contrast / (1 + (self.contrast - 1) * share)
