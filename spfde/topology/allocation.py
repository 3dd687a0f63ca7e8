"""How many blocks each layer keeps, and the masks that scores then give.

`uniform` and `erk` take the dense shapes by name, the sparsity (fraction of zeros) and how many blocks each layer has
in all (single weights if None), and return the count of stored blocks by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isclose, prod
from numbers import Real

import torch
from torch import Tensor, nn

from spfde._names import unknown
from spfde.nn.kinds import is_turned
from spfde.nn.refusals import pattern_of
from spfde.sparse.pattern import Grid, Pattern
from spfde.topology.topk import keep_globally, keep_highest_in_groups

Scores = dict[str, Tensor]
Shape = tuple[int, ...]
SPREADS = ("uniform", "erk", "global")


def stored_count(sparsity: float, size: int) -> int:
    """round((1 - sparsity) * size), at least 1 unless sparsity is 1."""
    return max(round((1 - sparsity) * size), 0 if sparsity == 1 else min(1, size))


def uniform(shapes: Mapping[str, Shape], sparsity: float, blocks: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same sparsity in every layer."""
    blocks = blocks or _weights(shapes)
    return {name: stored_count(sparsity, blocks[name]) for name in shapes}


def erk(shapes: Mapping[str, Shape], sparsity: float, blocks: Mapping[str, int] | None = None) -> dict[str, int]:
    """Density proportional to sum(dimensions) / product(dimensions): small layers stay denser.

    Layers whose density would pass 1 are made dense and the scale is solved again, until none does. Source: RigL
    (1911.11134), section 3, after SET.
    """
    sizes = _weights(shapes)
    blocks = blocks or sizes
    raw = {name: sum(shape) / max(1, sizes[name]) for name, shape in shapes.items()}
    total = (1 - sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in rest)
        scale = left / weight if weight else 0.0
        over = {name for name in rest if raw[name] * scale > 1}
        if not over:
            break
        dense |= over
    density = {name: 1.0 if name in dense else max(0.0, raw[name] * scale) for name in shapes}
    return {name: stored_count(sparsity if sparsity == 1 else 1 - density[name], blocks[name]) for name in shapes}


def _weights(shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {name: prod(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Budget:
    """A sparsity over layers, as a distribution and a pattern spread it.

    weights: the dense weights, by layer. grids: how the pattern cuts them, outputs first. spread: "uniform", "erk",
    "global" or {layer: sparsity}. turned: the layers whose dense weights are [inputs, outputs].
    """

    weights: Mapping[str, Tensor]
    grids: Mapping[str, Grid]
    pattern: Pattern
    spread: str | Mapping[str, float]
    sparsity: float
    turned: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, layers: Mapping[str, nn.Module], pattern: Pattern, spread: str | Mapping[str, float], sparsity: float
    ) -> Budget:
        """The budget of dense layers.

        Raises:
            ValueError: the pattern does not fit some layers, which are named.
        """
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        turned = frozenset(name for name, layer in layers.items() if is_turned(layer))
        return cls(weights, _grids(layers, pattern), pattern, spread, sparsity, turned)

    def _cut(self, name: str, dense: Tensor) -> Tensor:
        """All blocks of a tensor of the dense weight's shape."""
        return self.grids[name].cut(dense.mT if name in self.turned else dense)

    def _summed(self, name: str, scores: Tensor) -> Tensor:
        blocks = self._cut(name, scores)
        return blocks.view(-1) if blocks.shape[1:] == (1, 1) and blocks.is_contiguous() else blocks.sum((1, 2))

    def blocks(self, scores: Mapping[str, Tensor]) -> Scores:
        """Scores of single weights (dense shapes), summed over each block of the pattern (flat)."""
        return {name: self._summed(name, scores[name]) for name in self.grids}

    def counts(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, int]:
        """How many blocks each layer keeps; `scores` of blocks matter to "global" alone.

        progress: 1 is the goal; before it, every count is on its exponential way down from all to the goal.
        """
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        sizes = {name: grid.size for name, grid in self.grids.items()}
        if self.spread == "global":
            total = sum(sizes.values())
            goal = stored_count(self.sparsity, total)
            return keep_globally(scores, _on_the_way(total, goal, progress))
        if isinstance(self.spread, Mapping):
            goals = {name: stored_count(self.spread[name], size) for name, size in sizes.items()}
        else:
            goals = {"uniform": uniform, "erk": erk}[self.spread](shapes, self.sparsity, sizes)
        return {name: _on_the_way(size, goals[name], progress) for name, size in sizes.items()}

    def positions(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """Ascending positions of the blocks with the highest scores, as the pattern allows."""
        counts, out = self.counts(scores, progress), {}
        for name, grid in self.grids.items():
            device = scores[name].device
            quota = self.pattern.quota(grid, counts[name], device)
            out[name] = keep_highest_in_groups(scores[name], self.pattern.groups(grid, device), quota)
        return out

    def masks(self, scores: Mapping[str, Tensor], progress: float = 1.0) -> dict[str, Tensor]:
        """Bool masks of the dense shapes that keep the blocks at `positions`."""
        out = {}
        for name, kept in self.positions(scores, progress).items():
            grid = self.grids[name]
            mask = torch.zeros(grid.weights + 1, dtype=torch.bool, device=kept.device)
            mask[grid.places(kept)] = True
            shape = self.weights[name].shape
            out[name] = mask[:-1].view(shape[::-1]).mT if name in self.turned else mask[:-1].view(shape)
        return out

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
                alive = {name: self._cut(name, masks[name]).any(2).any(1) for name in self.grids}
                scores = {name: s.masked_fill(~alive[name], -torch.inf) for name, s in scores.items()}
            if done < rounds:
                masks = self.masks(scores, done / rounds)
        return scores


def check_sparsity(sparsity: float | None, pattern: Pattern, spread: str | Mapping[str, float]) -> float:
    """The sparsity that is meant: 0.9, or what the pattern itself gives, if None.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range or contradicts the pattern, or the distribution is unknown.
    """
    named = spread if isinstance(spread, Mapping) else {}
    if not named and spread not in SPREADS:
        raise unknown("distribution (or a mapping)", spread, SPREADS)
    own = pattern.sparsity
    for name, given in {"": sparsity, **named}.items():
        what = f"sparsity of {name!r}" if name else "sparsity"
        if given is not None and (not isinstance(given, Real) or isinstance(given, bool)):
            raise TypeError(f"expected {what} as a number in [0, 1], got {given!r}, try 0.9")
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


def _grids(layers: Mapping[str, nn.Module], pattern: Pattern) -> dict[str, Grid]:
    """How a pattern cuts each layer; what it does not fit is told all at once."""
    grids: dict[str, Grid] = {}
    misfits: dict[str, ValueError] = {}
    for name, layer in layers.items():
        try:
            grids[name] = grid_of(pattern, name, layer)
        except ValueError as error:
            misfits[name] = error
    if misfits:
        first, *others = misfits.values()
        also = list(dict.fromkeys(pattern_of(name, grids) for name in misfits))
        raise ValueError(f"{first} ({len(others)} others misfit too: add {(*also,)} to exclude)") if others else first
    return grids


def grid_of(pattern: Pattern, name: str, layer: nn.Module) -> Grid:
    """How a pattern cuts the weight of a layer, which errors name, outputs first."""
    shape = tuple(layer.weight.shape)
    try:
        return pattern.grid(shape[::-1] if is_turned(layer) else shape, getattr(layer, "groups", 1))
    except ValueError as error:
        raise ValueError(f"{name or 'the layer'!r}: {error}") from error
