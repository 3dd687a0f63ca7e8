"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.base import Topology
from spfde.topology.layers import magnitude


class SET(Topology):
    """Drops a constant share of each layer's stored weights, those with the smallest |w|, and grows as many at random.

    The count per layer never changes. Growth draws from everything that was not kept; a weight that is dropped and
    drawn again keeps its value. Source: sparse evolutionary training (1707.04780): share 0.3, once an epoch.

    split_signs: drop the share of the positive weights nearest to 0 and of the negative ones, as the paper words it;
    single weights only, a block has no sign. The rest of the arguments and errors: see Topology.

    Raises:
        ValueError: see Topology; or split_signs is asked of a pattern of blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        split_signs: bool = False,
    ) -> None:
        self.split_signs = split_signs
        if split_signs:
            self.refused = ("block", "channel")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)

    def _score(self, name: str, layer: SparseLayer) -> Tensor:
        score = magnitude(layer)
        if not self.split_signs:
            return score
        # The place among the weights of the same sign, in [0, 1): dropping the lowest places splits by sign.
        order = torch.sort(score, stable=True).indices
        negative = (layer.values.detach()[: layer.nnz].view(-1) < 0)[order]
        below, above = (sign.cumsum(0).to(score.dtype) for sign in (negative, ~negative))
        place = torch.where(negative, (below - 1) / below[-1:], (above - 1) / above[-1:])
        return torch.empty_like(score).index_copy_(0, order, place)
