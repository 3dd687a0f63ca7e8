"""MEST's elastic mutation (EM): drop the least important weights, grow as many at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.birth import first_in_groups
from spfde.topology.schedule import Stairs


class MEST(Topology):
    """Drops the stored weights with the lowest |w| + lam |dL/dw| and grows as many at random, layer by layer.

    The count per layer never changes. Growth draws from everything that was not kept, so a dropped weight may come
    back, at value 0. Blocks move whole, by the sum of their scores; weights stay in their group where the pattern
    counts in groups (n:m), in their output where it counts per output (fan-in). The moved share halves at 9/16 of the
    training and ends at 12/16. Source: MEST (2110.14032), elastic mutation; lam = 0 is the authors' own default.

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
        old, group = layer.positions(), layer.structure.groups(layer.grid, layer.values.device)
        groups = int(group[-1]) + 1 if group.numel() else 1
        held, size = (torch.bincount(g, minlength=groups) for g in (group[old], group))
        # The least important first; a group (for most patterns the layer) drops no more than it has room to regrow.
        order = torch.sort(self._importance(layer), descending=True, stable=True).indices.flip(0)
        droppable = order[first_in_groups(group[old][order], size - held)]
        count = min(int(self.schedule(self._step) * layer.nnz), droppable.numel())
        if count == 0:
            return 0
        stays = torch.ones_like(old, dtype=torch.bool)
        stays[droppable[:count]] = False
        kept = old[stays]
        grown = self._draw(group, kept, held - torch.bincount(group[kept], minlength=groups))
        self._move(layer, torch.cat([kept, grown]).sort().values, newborn=grown)
        return count * layer.values[0].numel()

    def _importance(self, layer: SparseLayer) -> Tensor:
        score = layer.values.detach().abs()
        if self.lam:
            if layer.values.grad is None:
                raise ValueError(
                    "expected gradients at an update (lam > 0), got none, try calling topology.step() before "
                    "optimizer.zero_grad()"
                )
            score = score + self.lam * layer.values.grad.abs()
        return score.sum((1, 2))[: layer.nnz]

    def _draw(self, group: Tensor, kept: Tensor, count: Tensor) -> Tensor:
        """`count[g]` distinct positions of each group g outside `kept`, all equally likely."""
        free = torch.ones_like(group, dtype=torch.bool)
        free[kept] = False
        candidates = free.nonzero().view(-1)
        drawn = torch.randperm(candidates.numel(), generator=self._generator)
        candidates = candidates[drawn.to(candidates.device)]
        return candidates[first_in_groups(group[candidates], count)]
