"""Controlled sparsity: L0 gates whose expected number is held at the target by a Lagrange multiplier."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from spfde.topology.methods.gated import Gated
from spfde.topology.options import option

# Hard concrete gates (1712.01312, section 2.2): temperature, and the ends of the interval that is clamped to [0, 1].
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
EDGE = BETA * log(-LOW / HIGH)  # the logit at which a gate is open with probability 1/2


class ConstrainedL0(Gated):
    """Trains a hard concrete gate for every block, under the constraint that the expected density is the target's.

    z = clamp(1.2 sigmoid((logit(u) + a) / beta) - 0.1, 0, 1) for a uniform u, beta = 2/3; evaluation takes u = 1/2. A
    gate is open with probability p = sigmoid(a - beta log(1/11)). Each layer has a multiplier m >= 0: a descends
    dL/da / rms(dL/da) + m p (1 - p), m climbs by dual_lr (density - target density) and starts again at 0 whenever the
    constraint holds (dual restarts). Source: controlled sparsity via constrained optimization (2208.04425), a
    constraint for each layer. The authors tune both step sizes by task; the defaults here follow from the length of the
    training.
    """

    dual_lr: float | None = option(None, "[0, inf)", "step size of the multiplier; None: 5 / (steps until begin)")

    def setup(self) -> None:
        self.multiplier: dict[str, Tensor] = {}
        super().setup()
        self.multiplier = {name: self.memory[name]["logit"].new_zeros(()) for name in self.memory}

    def start_logit(self) -> float:
        return super().start_logit() + EDGE

    def probability(self, logits: Tensor) -> Tensor:
        return (logits - EDGE).sigmoid()

    def gates(self, name: str) -> tuple[Tensor, Tensor]:
        logits = self.memory[name]["logit"]
        drawn = torch.rand(logits.shape, generator=self.generator).to(logits, non_blocking=True)
        return _stretched(logits + drawn.clamp(1e-6, 1 - 1e-6).logit()), _stretched(logits)

    def gate_gradient(self, name: str, logits: Tensor, slope: Tensor) -> Tensor:
        layer = self.layers[name]
        z = layer.transform.trained.view(-1)[: layer.nnz]
        # v dL/dv is z dL/dz, and dz/da is 0 where z was clamped.
        s = (z - LOW) / (HIGH - LOW)
        inside = (z > 0) & (z < 1)
        return torch.where(inside, slope / z.clamp(min=1e-6) * (HIGH - LOW) * s * (1 - s) / BETA, 0)

    def pressure(self, name: str, logits: Tensor) -> Tensor:
        p, multiplier = self.probability(logits), self.multiplier[name]
        excess = (p.sum() - self.target[name]) / max(1, self.layers[name].grid.size)
        rate = 5 / max(1.0, self.begin * self.total_steps) if self.dual_lr is None else self.dual_lr
        multiplier.copy_(torch.where(excess > 0, multiplier + rate * excess, 0))
        return multiplier * p * (1 - p)

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "multiplier": {name: m.clone() for name, m in self.multiplier.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        self.multiplier = {n: m.to(self.layers[n].values.device, copy=True) for n, m in state["multiplier"].items()}


def _stretched(noisy: Tensor) -> Tensor:
    """The gate of a logit with its noise."""
    return ((HIGH - LOW) * (noisy / BETA).sigmoid() + LOW).clamp(0, 1)
