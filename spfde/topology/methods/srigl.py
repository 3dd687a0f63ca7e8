"""SRigL: RigL with a constant fan-in, and outputs without enough salient weights are ablated."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from spfde.topology.history import Shift
from spfde.topology.layers import LayerState
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import ascending, count_groups, highest, without_lowest
from spfde.topology.options import option
from spfde.topology.topk import keep_highest_in_groups


class SRigL(RigL):
    """RigL where every output that is not ablated has the same fan-in; outputs with few salient weights lose all.

    A weight is salient if the layer's drop by |w| keeps it or the layer's growth by |dL/dw| would take it. An output
    with fewer than gamma times the fan-in of them is ablated (and comes back when it has more), except in the last
    sparse layer. The fan-in then is the layer's count divided by the outputs left, the remainder on the first of them,
    so the count stays exact; each output keeps its largest weights and grows by gradient. On blocks fan-in is counted
    in blocks per block row. Source: SRigL (2305.02299): gamma 0.3 for convolutional networks, 0.95 for transformers.
    """

    refused = ("n:m", "channel")
    keeps_frozen = False  # an output that it ablates loses all
    gamma: float = option(0.3, "[0, 1]", "share of the fan-in that must be salient; 0 ablates nothing")

    def setup(self) -> None:
        self._last = next(reversed(self.layers))

    def keep_slots(self, layer: LayerState, score: Tensor) -> Tensor:
        room = torch.tensor([layer.grid.size - layer.nnz])
        return without_lowest(score, layer.positions, room, int(self.drop_share(self.steps_done) * layer.nnz))

    def exchange(self, layer: LayerState, score: Tensor, kept: Tensor, count: int) -> Shift | None:
        if not layer.nnz:
            return None
        old, stays, (rows, cols) = layer.positions, layer.positions[kept], layer.grid.shape
        slabs = list(self.gradient_magnitudes(layer))  # held, as growth is asked for twice
        row = layer.grid.rows(old.device)
        dropped = torch.tensor([layer.nnz - kept.numel()])
        salient = count_groups(row, rows, torch.cat([stays, highest(slabs, row, stays, dropped)[0]]))
        gamma = 0.0 if layer.name == self._last else self.gamma
        want = fan_in(salient, layer.nnz, cols, gamma, count_groups(row, rows, old))
        stays = stays[keep_highest_in_groups(score[kept], row[stays], want)]
        grown = highest(slabs, row, stays, want - count_groups(row, rows, stays))[0]
        positions = ascending(layer.grid.size, stays, grown)
        return None if torch.equal(positions, old) else self.move(layer, positions)


def fan_in(salient: Tensor, count: int, cols: int, gamma: float, held: Tensor) -> Tensor:
    """How many of `count` blocks each output holds [outputs]: as many each, none where `salient` is too few.

    The bar is gamma times the fan-in so far, that of the outputs that hold any. Enough outputs stay for the count.
    """
    bar = gamma * count / max(1, int((held > 0).sum()))
    needed = min(salient.numel(), max(1, ceil(count / cols)))
    alive = (salient >= bar) if gamma else torch.ones_like(salient, dtype=torch.bool)
    alive[torch.sort(salient, descending=True, stable=True).indices[:needed]] = True
    share, rest = divmod(count, int(alive.sum()))
    want = alive.long() * share
    want[alive.nonzero().view(-1)[:rest]] += 1
    return want
