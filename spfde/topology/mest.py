"""MEST's elastic mutation (EM): drop the least important weights, grow as many at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.birth import keep_highest
from spfde.topology.schedule import Stairs


class MEST(Topology):
    """Drops the stored weights with the lowest |w| + lam |dL/dw| and grows as many at random, layer by layer.

    The count per layer never changes. Growth draws from everything that was not kept, so a dropped weight may come
    back, at value 0. The moved share halves at 9/16 of the training and ends at 12/16. Source: MEST (2110.14032),
    elastic mutation; lam = 0 is the authors' own default.

    Args:
        model: has spfde sparse layers.
        optimizer: built after spfde.sparsify.
        total_steps: optimizer steps of the whole training.
        every: optimizer steps between updates.
        drop_fraction: share of a layer's stored weights that an update moves at first.
        seed: of random growth.
        lam: weight of the gradient's magnitude, >= 0; read from `values.grad` as the optimizer step left it.

    Raises:
        ValueError: see Topology; or lam is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float = 0.3,
        seed: int = 0,
        lam: float = 0.0,
    ) -> None:
        if lam < 0:
            raise ValueError(f"expected lam >= 0, got {lam}")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.lam = lam
        self.schedule = Stairs(drop_fraction, total_steps)

    def _update_layer(self, layer: SparseLayer) -> int:
        inactive = layer.shape.numel() - layer.nnz
        count = min(int(self.schedule(self._step) * layer.nnz), inactive)
        if count == 0:
            return 0
        old = layer.positions()
        kept = old[keep_highest(self._importance(layer), layer.nnz - count)]
        grown = self._draw(layer.shape.numel(), kept, count)
        self._move(layer, torch.cat([kept, grown]).sort().values, newborn=grown)
        return count

    def _importance(self, layer: SparseLayer) -> Tensor:
        score = layer.values.detach().abs()
        if self.lam:
            if layer.values.grad is None:
                raise ValueError(
                    "expected gradients at an update (lam > 0), got none, try calling topology.step() before "
                    "optimizer.zero_grad()"
                )
            score = score + self.lam * layer.values.grad.abs()
        return score.view(-1)[: layer.nnz]

    def _draw(self, size: int, kept: Tensor, count: int) -> Tensor:
        """`count` distinct positions outside `kept`, all equally likely."""
        free = torch.ones(size, dtype=torch.bool, device=kept.device)
        free[kept] = False
        candidates = free.nonzero().view(-1)
        drawn = torch.randperm(candidates.numel(), generator=self._generator)[:count]
        return candidates[drawn.to(candidates.device)]
