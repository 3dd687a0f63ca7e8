"""MEST's elastic mutation (EM, EM&S): drop the least important weights, grow as many at random."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.layers import highest
from spfde.topology.schedule import Stairs


class MEST(Topology):
    """Drops the stored weights with the lowest |w| + lam |dL/dw| and grows as many at random, layer by layer.

    EM: the count per layer never changes; growth draws from everything that was not kept, so a dropped weight may come
    back, at value 0. EM&S (soft=True): an update prunes to the target count, then grows to (1 + moved share) times it:
    a layer trains above its target until the share is 0, and ends exactly at it. Blocks move whole, by the sum of their
    scores; weights stay in their group where the pattern counts in groups (n:m), in their output where it counts per
    output (fan-in). The moved share halves at 9/16 of the training and ends at 12/16. Source: MEST (2110.14032), whose
    authors' own default is lam = 0.

    Args:
        model: has spfde sparse layers.
        optimizer: built after spfde.sparsify.
        total_steps: optimizer steps of the whole training.
        every: optimizer steps between updates.
        drop_fraction: share of a layer's stored weights that an update moves at first.
        seed: of random growth.
        lam: weight of the gradient's magnitude, >= 0; read from `values.grad` as the optimizer step left it.
        soft: EM&S, the soft memory bound.

    Raises:
        ValueError: see Topology; or lam is negative, or soft is asked of an n:m pattern, which fixes its count.
    """

    forgets = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        lam: float = 0.0,
        soft: bool = False,
    ) -> None:
        if lam < 0:
            raise ValueError(f"expected lam >= 0, got {lam}")
        self.lam, self.soft = lam, soft
        if soft:
            self.refused = ("n:m",)
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.schedule = Stairs(self.schedule(0), total_steps)
        if soft:
            self._reserve({name: self._bound(name, 0) for name in self.layers})

    def _reads_gradient(self) -> bool:
        return self.lam > 0

    def _score(self, name: str, layer: SparseLayer) -> Tensor:
        score = layer.values.detach().abs()
        if self.lam:
            if layer.values.grad is None:
                raise ValueError(
                    "expected gradients at an update (lam > 0), got none, try calling topology.step() before "
                    "optimizer.zero_grad()"
                )
            score = score + self.lam * layer.values.grad.abs()
        return score.sum((1, 2))[: layer.nnz]

    def _stays(self, name: str, layer: SparseLayer, score: Tensor) -> Tensor:
        if not self.soft:
            return super()._stays(name, layer, score)
        return highest(layer, score, min(layer.nnz, self.target[name]))

    def _counts(self, live: Mapping[str, SparseLayer], stays: Mapping[str, Tensor]) -> dict[str, int]:
        if not self.soft:
            return super()._counts(live, stays)
        return {name: min(self._bound(name, self._step), layer.grid.size) for name, layer in live.items()}

    def _bound(self, name: str, step: int) -> int:
        """The count that an update after `step` grows to."""
        return self.target[name] + int(self.schedule(step) * self.target[name])
