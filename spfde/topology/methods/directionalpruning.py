"""Structured directional pruning: dual averaging with a threshold on the norm of every block."""

from __future__ import annotations

from torch import Tensor

from spfde.topology.methods.averaging import DualAveraging
from spfde.topology.options import option


class DirectionalPruning(DualAveraging):
    """Adds up the steps of every block and takes c t off the root mean square of the sum, for a threshold t that grows.

    Step k adds lr^(1/2 + mu) (k^mu - (k - 1)^mu) to t: slower than the steps themselves can add up, so that only what
    moves along flat directions of the loss is made 0. On single weights this is gRDA, the solver of directional pruning
    (2006.09358); blocks, outputs with "channel", are what structured directional pruning (2107.05328) adds.
    """

    c: float | None = option(None, "[0, inf)", "size of the threshold; None: chosen at every update")
    mu: float = option(0.6, "(0.5, 1)", "the power of the steps that the threshold grows with")

    def given(self) -> float | None:
        return self.c

    def size(self, sums: Tensor) -> Tensor:
        return sums.square().mean((1, 2), keepdim=True).sqrt()

    def growth(self, name: str, rate: float) -> float:
        k = self.steps_done
        return rate ** (0.5 + self.mu) * (k**self.mu - (k - 1) ** self.mu)
