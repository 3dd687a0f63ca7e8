"""SRigL: RigL with a constant fan-in, and outputs without enough salient weights are ablated."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.topology.history import Shift
from spfde.topology.layers import count_groups
from spfde.topology.methods.rigl import RigL
from spfde.topology.moves import ascending, highest, without_lowest
from spfde.topology.topk import keep_highest_in_groups


class SRigL(RigL):
    """RigL where every output that is not ablated has the same fan-in; outputs with few salient weights lose all.

    A weight is salient if the layer's drop by |w| keeps it or the layer's growth by |dL/dw| would take it. An output
    with fewer than gamma times the fan-in of them is ablated (and comes back when it has more), except in the last
    sparse layer. The fan-in then is the layer's count divided by the outputs left, the remainder on the first of them,
    so the count stays exact; each output keeps its largest weights and grows by gradient. Source: SRigL (2305.02299):
    gamma 0.3 for convolutional networks, 0.95 for transformers.

    gamma: in [0, 1]; 0 ablates nothing. On blocks fan-in is counted in blocks per block row. The rest: see RigL.

    Raises:
        ValueError: see RigL; or gamma is out of range.
    """

    refused = ("n:m", "channel")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        end: float = 0.75,
        gamma: float = 0.3,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"expected gamma in [0, 1], got {gamma}")
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed, end=end
        )
        self.gamma = gamma
        self._last = next(reversed(self.layers))

    def _stays(self, name: str, layer: SparseLayer, score: Tensor) -> Tensor:
        room = torch.tensor([layer.grid.size - layer.nnz])
        return without_lowest(score, layer.positions(), room, int(self.schedule(self._step) * layer.nnz))

    def _exchange(self, name: str, layer: SparseLayer, score: Tensor, stays: Tensor, count: int) -> Shift | None:
        if not layer.nnz:
            return None
        old, (rows, cols) = layer.positions(), layer.grid.shape
        slabs = list(self._watch.probes[name].magnitudes())  # held, as growth is asked for twice
        row = layer.grid.rows(old.device)
        dropped = torch.tensor([layer.nnz - stays.numel()])
        likely = highest(slabs, row, old[stays], dropped)[0]
        salient = count_groups(row, rows, torch.cat([old[stays], likely]))
        want = fan_in(salient, layer.nnz, cols, 0.0 if name == self._last else self.gamma, count_groups(row, rows, old))
        kept = old[stays]
        kept = kept[keep_highest_in_groups(score[stays], row[kept], want)]
        grown = highest(slabs, row, kept, want - count_groups(row, rows, kept))[0]
        positions = ascending(layer.grid.size, kept, grown)
        return None if torch.equal(positions, old) else self._move(name, layer, positions)


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
