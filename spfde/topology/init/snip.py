"""SNIP: keep the weights whose removal would change the loss most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import Trial


@dataclass(frozen=True)
class SNIP:
    """|w * dL/dw| at the initial weights, once; the highest are kept.

    Source: arXiv 1810.02340. training: whether the model is scored in train mode; the authors' code uses eval mode.
    """

    needs_loss: ClassVar[bool] = True
    training: bool = False

    def scores(self, trial: Trial, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        gradients = trial.gradients(trial.weights, training=self.training)
        return budget.blocks({name: (weight * gradients[name]).abs() for name, weight in trial.weights.items()})
