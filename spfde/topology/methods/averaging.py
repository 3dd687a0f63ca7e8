"""Regularised dual averaging: the optimizer's steps add up before the threshold that makes weights 0, not behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spfde.topology.layers import LayerState
from spfde.topology.methods.shrinking import Shrinking

LEAST = 1e-12


class DualAveraging(Shrinking, ABC):
    """A method that keeps the sum o of the steps beside every weight, and trains w = o max(1 - strength t / |o|, 0).

    After a step from w to w': o <- a o + (1 - a) w + (w' - w), and the threshold t <- a t + `growth`; a = 1 is dual
    averaging, a = 0 the proximal gradient. The step is the optimizer's own, whatever it is. Where the strength is not
    given each update chooses the least one that leaves no more than `wanted` blocks of a layer, whose thresholds stay
    as they are once it is at its target. From `end` on the weights are trained as they are.
    """

    keeps_frozen = False  # the sums move every stored weight

    def setup(self) -> None:
        super().setup()
        given = self.given()
        self.strengths = {name: given or 0.0 for name in self.layers}
        for name, layer in self.live().items():
            values = layer.values.detach()
            self.memory[name] = {"sum": values.clone(), "before": values.clone(), "threshold": values[:, :1, :1] * 0}

    @abstractmethod
    def given(self) -> float | None:
        """The strength that the user gave; None: chosen."""

    @abstractmethod
    def growth(self, name: str, rate: float) -> Tensor | float:
        """By how much the threshold [capacity, 1, 1] of a layer grows in a step of the learning rate `rate`."""

    def size(self, sums: Tensor) -> Tensor:
        """|o| of every weight [capacity, R, C], or of every block [capacity, 1, 1]."""
        return sums.abs()

    def averages(self) -> float:
        """The a of this step."""
        return 1.0

    @torch.no_grad()
    def after_step(self) -> None:
        if self.over:
            self.memory = {}
        for name, rate in self.learning_rates().items() if self.memory else ():
            if name in self.memory:
                self._shrink(name, self.layers[name].values, rate)

    def _shrink(self, name: str, values: Tensor, rate: float) -> None:
        memory, a = self.memory[name], self.averages()
        if self.given() is not None or self.layers[name].nnz > self.target[name]:
            memory["threshold"].mul_(a).add_(self.growth(name, rate))
        memory["sum"].mul_(a).add_(values).sub_(memory["before"], alpha=a)
        if self.strengths[name]:
            cut = self.strengths[name] * memory["threshold"].clamp(min=LEAST)
            values.copy_(memory["sum"] * (1 - cut / self.size(memory["sum"]).clamp(min=1e-30)).clamp(min=0))
        memory["before"].copy_(values)

    def keep_all(self, layers: Mapping[str, LayerState], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = super().keep_all(layers, scores)
        if self.steps_done and self.given() is None:
            for name, slots in kept.items():
                self._choose(name, slots)
        return kept

    def _choose(self, name: str, kept: Tensor) -> None:
        """The least strength that leaves the wanted number of the blocks that stay, or fewer where some are equal."""
        wanted = self.wanted(name)
        if name in self.memory and kept.numel() > wanted:
            sums, threshold = (self.memory[name][key][kept] for key in ("sum", "threshold"))
            most = (self.size(sums) / threshold.clamp(min=LEAST)).amax((1, 2))
            self.strengths[name] = float(most.topk(wanted + 1).values[-1])

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "strengths": dict(self.strengths)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        self.strengths = dict(state["strengths"])
