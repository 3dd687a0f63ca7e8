"""Polarization: binary gates, and a loss that drives their probabilities apart, to 0 or 1."""

from __future__ import annotations

from torch import Tensor

from spfde.topology.methods.gated import Gated
from spfde.topology.options import option


class Polarization(Gated):
    """Trains a binary gate for every block by a straight-through gradient, and polarizes its probability.

    A gate is open where p = sigmoid(a) > 1/2; a descends p (1 - p) dL/dz / rms + d/da of polar p (1 - p) + `density`
    (mean p - target density)^2 / 2 (both in units of that root mean square, the mean over the layer's grid). What is
    behind a closed gate goes on training by the gradient it would have if it were open. Source: consensus sub-networks
    (2302.10798), whose gates are those of layers or channels and computed from each sample, and polarized so that all
    samples agree; a stored weight cannot depend on the sample, so here they agree from the start.
    """

    straight = True
    polar: float = option(0.1, "[0, inf)", "weight of the polarization, which holds each gate at its side")
    density: float = option(2.0, "[0, inf)", "weight of the distance to the target density")

    def probability(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def gates(self, name: str) -> tuple[Tensor, Tensor]:
        opened = (self.memory[name]["logit"] > 0).to(self.memory[name]["logit"])
        return opened, opened.clone()

    def gate_gradient(self, name: str, logits: Tensor, slope: Tensor) -> Tensor:
        p = self.probability(logits)
        return slope * p * (1 - p)

    def pressure(self, name: str, logits: Tensor) -> Tensor:
        p = self.probability(logits)
        excess = (p.sum() - self.target[name]) / max(1, self.layers[name].grid.size)
        return (self.polar * (1 - 2 * p) + self.density * excess) * p * (1 - p)
