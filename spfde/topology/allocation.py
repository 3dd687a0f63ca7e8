"""How much each layer keeps, and the masks that scores then give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isclose

import torch
from torch import Tensor, nn

from spfde._names import unknown
from spfde.sparse.pattern import Grid, Pattern
from spfde.topology import distribution
from spfde.topology import topk as birth

Scores = dict[str, Tensor]
SPREADS = ("uniform", "erk", "global")


@dataclass(frozen=True)
class Budget:
    """A sparsity over layers, as a distribution and a pattern spread it.

    weights: the dense weights, by layer. grids: how the pattern cuts them. spread: "uniform", "erk", "global" or
    {layer: sparsity}.
    """

    weights: Mapping[str, Tensor]
    grids: Mapping[str, Grid]
    pattern: Pattern
    spread: str | Mapping[str, float]
    sparsity: float

    @classmethod
    def of(
        cls, layers: Mapping[str, nn.Module], pattern: Pattern, spread: str | Mapping[str, float], sparsity: float
    ) -> Budget:
        """The budget of nn.Linear and nn.Conv2d layers.

        Raises:
            ValueError: the pattern does not fit a layer, which is named.
        """
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        return cls(
            weights, {name: _grid(pattern, name, layer) for name, layer in layers.items()}, pattern, spread, sparsity
        )

    def blocks(self, scores: Mapping[str, Tensor]) -> Scores:
        """Scores of single weights (dense shapes), summed over each block of the pattern (flat)."""
        return {name: grid.cut(scores[name]).sum((1, 2)) for name, grid in self.grids.items()}

    def counts(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, int]:
        """How many blocks each layer keeps; `scores` of blocks matter to "global" alone.

        progress: 1 is the goal; before it, every count is on its exponential way down from all to the goal.
        """
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        sizes = {name: grid.size for name, grid in self.grids.items()}
        if self.spread == "global":
            total = sum(sizes.values())
            goal = distribution.stored_count(self.sparsity, total)
            return birth.keep_globally(scores, _on_the_way(total, goal, progress))
        if isinstance(self.spread, Mapping):
            goals = {name: distribution.stored_count(self.spread[name], size) for name, size in sizes.items()}
        else:
            goals = getattr(distribution, self.spread)(shapes, self.sparsity, sizes)
        return {name: _on_the_way(size, goals[name], progress) for name, size in sizes.items()}

    def masks(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """Bool masks of the dense shapes that keep the blocks with the highest scores."""
        return birth.masks(self.weights, self.grids, self.pattern, self.counts(scores, progress), scores)

    def refine(
        self, score: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], rounds: int, revive: bool = False
    ) -> Scores:
        """Scores of blocks after pruning in `rounds` steps, exponentially down to the goal.

        score: scores of single weights, of the model under the masks it is given. revive: whether what an earlier
        round pruned may come back.
        """
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        for done in range(1, rounds + 1):
            scores = self.blocks(score(masks))
            if not revive:
                alive = {name: grid.cut(masks[name]).any(2).any(1) for name, grid in self.grids.items()}
                scores = {name: s.masked_fill(~alive[name], -torch.inf) for name, s in scores.items()}
            if done < rounds:
                masks = self.masks(scores, done / rounds)
        return scores


def check_sparsity(sparsity: float | None, pattern: Pattern, spread: str | Mapping[str, float]) -> float:
    """The sparsity that is meant: 0.9, or what the pattern itself gives, if None.

    Raises:
        ValueError: it is out of range or contradicts the pattern, or the distribution is unknown.
    """
    named = spread if isinstance(spread, Mapping) else {}
    if not named and spread not in SPREADS:
        raise unknown("distribution (or a mapping)", spread, SPREADS)
    own = pattern.sparsity
    for name, given in {"": sparsity, **named}.items():
        what = f"sparsity of {name!r}" if name else "sparsity"
        if given is not None and not 0 <= given <= 1:
            raise ValueError(f"expected {what} in [0, 1], got {given} (it is the fraction of zeros)")
        if given is not None and own is not None and not isclose(given, own, abs_tol=1e-3):
            raise ValueError(
                f"expected {what} {own:.4g}, which pattern {str(pattern)!r} fixes, got {given}, try leaving it out"
            )
    if own is not None and not named and spread != "uniform":
        raise ValueError(
            f"expected distribution 'uniform', as pattern {str(pattern)!r} fixes every layer's sparsity, got {spread!r}"
        )
    return sparsity if sparsity is not None else 0.9 if own is None else own


def _on_the_way(size: int, goal: int, progress: float) -> int:
    """The count size ** (1 - progress) * goal ** progress; a goal of 0 is reached only at the end."""
    return goal if progress == 1 or size == 0 else round(size * (max(goal, 1) / size) ** progress)


def _grid(pattern: Pattern, name: str, layer: nn.Module) -> Grid:
    try:
        return pattern.grid(tuple(layer.weight.shape), getattr(layer, "groups", 1))
    except ValueError as error:
        raise ValueError(f"{name or 'the layer'!r}: {error}") from error
