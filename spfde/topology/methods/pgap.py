"""P-GaP: every process grows a partition of its own to dense, and the partitions are put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spfde.topology.layers import LayerState
from spfde.topology.methods.gap import GaP
from spfde.topology.optimizer_state import optimizers


class PGaP(GaP):
    """Trains one replica in each process, with one partition of the layers dense; partitions are exchanged at updates.

    An update prunes every layer to its target by |w|, takes each from the process that trained it dense (index, values
    and optimizer state), averages everything else over the processes and grows the partitions anew, at 0. From `end`
    on replicas are sparse and averaged at every update. Processes must not average gradients: no
    DistributedDataParallel. They may have different samples, and must take as many steps. In one process the only
    partition is the whole model. Source: scheduled grow-and-prune (2106.09857), parallel partitions.
    """

    reset_regrown = True
    partitions = 0  # as many as processes

    def setup(self) -> None:
        if self._wrapped:
            raise ValueError(
                "expected processes that train apart, got a model in DistributedDataParallel or fully_shard, which "
                "makes them one, try the model itself, or GaP"
            )
        self.partitions, self._growing, self._combining = self._ranks.count, False, False
        super().setup()

    def count_at(self, name: str, step: int) -> int:
        growing = step < self.end * self.total_steps and self._partition[name] == self._ranks.rank
        return self.layers[name].grid.size if growing and not self._combining else self.target[name]

    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        self._combining = True
        moved = super().update()
        self._combine()
        self._combining = False
        self._growing = self.steps_done < self.end * self.total_steps
        return (super().update() if self._growing else False) or moved

    def finish(self) -> int:
        trimmed = super().finish()
        self._combine()
        return trimmed

    def own_state(self) -> dict[str, Any]:
        return {"growing": self._growing}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._growing = state["growing"]

    @torch.no_grad()
    def _combine(self) -> None:
        """Makes all replicas one: a layer is that of its partition's process, the rest is the mean."""
        if self._ranks.count == 1:
            return
        apart = self.live() if self._growing else {}
        for name, layer in apart.items():
            owner, positions = self._partition[name], layer.positions().clone()
            self._ranks.follow([positions], owner)
            if not torch.equal(positions, layer.positions()):
                self.move(LayerState.of(name, layer), positions)
            self._ranks.follow(self._with_state(layer.values), owner)
        taken = {id(layer.values) for layer in apart.values()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in taken:
                    self._average(self._with_state(parameter))
        self._average(b for b in self._root.buffers() if b.is_floating_point())

    def _with_state(self, parameter: Tensor) -> Iterator[Tensor]:
        """A Parameter and what the optimizers remember of it as numbers."""
        yield parameter.detach()
        for one in optimizers(self.optimizer):
            state = getattr(one, "state", {}).get(parameter, {})
            yield from (kept for kept in state.values() if isinstance(kept, Tensor) and kept.is_floating_point())

    def _average(self, tensors: Iterator[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(self._ranks.average(tensor))
