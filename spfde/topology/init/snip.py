"""SNIP: keep the weights whose removal would change the loss most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import ScoringContext


@dataclass(frozen=True)
class SNIP:
    """|w * dL/dw| at the initial weights, once; the highest are kept.

    Source: arXiv 1810.02340. training: whether the model is scored in train mode; the authors' code uses eval mode.
    """

    needs: ClassVar[str] = "loss"
    training: bool = False

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        gradients = context.gradients(context.weights, training=self.training)
        return budget.blocks({name: (weight * gradients[name]).abs() for name, weight in context.weights.items()})
