"""SynFlow: keep the weights that carry the most of all paths from input to output; no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spfde._modules import map_tensors
from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.functional_scores import (
    ScoringContext,
    call,
    check_tensor,
    finite,
    gradient,
    state,
    undisturbed,
)


@dataclass(frozen=True)
class SynFlow:
    """|w * dR/dw| with R = sum(model(ones)) under absolute parameters, pruned in rounds; the highest are kept.

    Source: arXiv 2006.05467. In eval mode and float64, since R of a deep network leaves the range of float32. Of an
    input only the shape counts (integer inputs, such as tokens, are used as they are).
    """

    needs: ClassVar[str] = "input"
    rounds: int = 100

    def __post_init__(self) -> None:
        if not self.rounds >= 1:
            raise ValueError(f"expected rounds >= 1, got {self.rounds}, try 100 (the paper's)")

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer)."""
        tensors = {name: _positive(tensor) for name, tensor in state(context.model).items()}
        weights = {name: _positive(weight) for name, weight in context.weights.items()}
        ones = _ones(context.example)

        def flow(masks: dict[str, Tensor]) -> Scores:
            leaves = {name: (weight * masks[name]).requires_grad_() for name, weight in weights.items()}
            with undisturbed(context.model, False, context.seed):
                output = check_tensor(
                    call(context.model, {**tensors, **context.named(leaves)}, ones), "synflow", "init='snip'"
                )
                parts = gradient(output.sum(), list(leaves.values()))
            return finite({name: (leaves[name].detach() * g).abs() for name, g in zip(leaves, parts, strict=True)})

        return budget.refine(flow, self.rounds)


def _positive(tensor: Tensor) -> Tensor:
    return tensor.abs().double() if tensor.is_floating_point() else tensor.clone()


def _ones(x: Any) -> Any:
    """Ones like the first sample of x, or of each tensor in it."""

    def first(tensor: Tensor) -> Tensor:
        one = tensor[:1] if tensor.dim() else tensor
        return torch.ones_like(one, dtype=torch.float64) if one.is_floating_point() else one

    return map_tensors(first, x)
