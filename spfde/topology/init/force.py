"""FORCE and iterative SNIP: prune step by step, scoring the pruned model anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import ScoringContext


@dataclass(frozen=True)
class FORCE:
    """|w * dL/dw(w * mask)| of the pruned model, in rounds; the highest are kept.

    Source: arXiv 2006.09081. rounds: steps of the exponential schedule. revive: whether a pruned weight may come back
    (FORCE) or not (iterative SNIP). training: whether the model is scored in train mode, as in the authors' code.
    """

    needs: ClassVar[str] = "loss"
    rounds: int = 10
    revive: bool = True
    training: bool = True

    def __post_init__(self) -> None:
        if not self.rounds >= 1:
            raise ValueError(f"expected rounds >= 1, got {self.rounds}, try 10 (the authors')")

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""

        def saliency(masks: dict[str, Tensor]) -> Scores:
            pruned = {name: weight * masks[name] for name, weight in context.weights.items()}
            gradients = context.gradients(pruned, training=self.training)
            return {name: (weight * gradients[name]).abs() for name, weight in context.weights.items()}

        return budget.refine(saliency, self.rounds, self.revive)
