"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.topology.base import Topology
from spfde.topology.layers import LayerState
from spfde.topology.options import option


class SET(Topology):
    """Drops a constant share of each layer's stored weights, those with the smallest |w|, and grows as many at random.

    The count per layer never changes. Growth draws from everything that was not kept; a weight that is dropped and
    drawn again keeps its value. Source: sparse evolutionary training (1707.04780): share 0.3, once an epoch.
    """

    sharded = True
    split_signs: bool = option(
        False, None, "drop that share of the positive and of the negative weights; single weights only"
    )

    def check_options(self) -> None:
        if self.split_signs:
            self.refused = ("block", "channel")  # a block has no sign

    def score(self, layer: LayerState) -> Tensor:
        score = super().score(layer)
        if not self.split_signs:
            return score
        # The place among the weights of the same sign, in [0, 1): dropping the lowest places splits by sign.
        order = torch.sort(score, stable=True).indices
        negative = (layer.module.values.detach()[: layer.nnz].view(-1) < 0)[order]
        below, above = (sign.cumsum(0).to(score.dtype) for sign in (negative, ~negative))
        place = torch.where(negative, (below - 1) / below[-1:], (above - 1) / above[-1:])
        return torch.empty_like(score).index_copy_(0, order, place)
