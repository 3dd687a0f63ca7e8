"""GraSP: keep the weights whose removal would lower the gradient's norm most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import ScoringContext, gradient


@dataclass(frozen=True)
class GraSP:
    """w * (H g), with the loss's gradient g and Hessian H at the initial weights; the highest are kept.

    Source: arXiv 2002.07376, which writes S = -w * (H g) and removes the highest. temperature: what the model's output
    (logits) is divided by; 1 for a loss that does not take logits. training: whether the model is scored in train mode,
    as in the authors' code.
    """

    needs: ClassVar[str] = "loss"
    temperature: float = 200.0
    training: bool = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"expected a temperature > 0, got {self.temperature}, try 1 (off) or 200 (the paper's)")

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        options = {"training": self.training, "scale": 1 / self.temperature}
        flow = list(context.gradients(context.weights, **options).values())

        def times_flow(loss: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            first = gradient(loss, leaves, create_graph=True)
            return gradient(sum((a * b).sum() for a, b in zip(first, flow, strict=True)), leaves)

        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            product = context.gradients(context.weights, derivative=times_flow, **options)
        return budget.blocks({name: weight * product[name] for name, weight in context.weights.items()})
