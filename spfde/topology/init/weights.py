"""Masks from the weights alone: at random, or by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import ScoringContext


@dataclass(frozen=True)
class Random:
    """Seeded noise: every mask with the same counts is equally likely."""

    needs: ClassVar[str] = "weights"

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        generator = torch.Generator().manual_seed(context.seed)
        return {
            name: torch.rand(grid.size, generator=generator).to(context.weights[name].device)
            for name, grid in budget.grids.items()
        }


@dataclass(frozen=True)
class Magnitude:
    """|w|, summed over a block."""

    needs: ClassVar[str] = "weights"

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        return budget.blocks({name: weight.detach().abs() for name, weight in context.weights.items()})
