"""An exponential moving average of a model whose masks move."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import unwrapped
from spfde.nn import SparseLayer
from spfde.topology import Topology


class EMA:
    """The average d * average + (1 - d) * model, weight by weight, of a model whose masks `topology` moves.

    `module` is the averaged model, in eval mode: its masks are the model's at any time, and what it stores are the
    averages of the dense weights at these places, 0 wherever a weight was not stored. Buffers (running statistics) are
    the model's.

        ema = spfde.integrations.EMA(model, topology, decay=0.999)
        ...
        topology.step()
        ema.update()      # once per step, after it or before
        ema.module(x)

    Args:
        model: the average starts as it is now.
        topology: of that model; None if no mask moves.
        decay: d, in [0, 1].

    Raises:
        ValueError: decay is out of range, or the topology is of another model.
    """

    def __init__(self, model: nn.Module, topology: Topology | None = None, decay: float = 0.999) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"expected decay in [0, 1], got {decay}, try 0.999")
        self.model, self.decay, self.updates = unwrapped(model), decay, 0
        layers = self._layers()
        if topology is not None and not {*topology.layers.values()} <= {*layers.values()}:
            raise ValueError(
                "expected the topology of this model, got another model's, try the one that moves its masks"
            )
        self.module = copy.deepcopy(self.model).eval().requires_grad_(False)
        copies = {name: m for name, m in self.module.named_modules() if isinstance(m, SparseLayer)}
        self._averages = {name: _Average(layer) for name, layer in copies.items()}
        self._attach()

    def _layers(self) -> dict[str, SparseLayer]:
        return {name: m for name, m in self.model.named_modules() if isinstance(m, SparseLayer)}

    def _attach(self) -> None:
        for name, layer in self._layers().items():
            layer._lineage.lead(self._averages[name].layer, self._averages[name])

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model as it is now."""
        for mine, theirs in zip(self.module.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(theirs.detach().to(mine), 1 - self.decay)
        for mine, theirs in zip(self.module.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)
        for average in self._averages.values():
            average.decay(self.decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged model, the averages of weights that are not stored any more, and the count of updates."""
        dropped = {name: average.state_dict() for name, average in self._averages.items()}
        return {"module": self.module.state_dict(), "dropped": dropped, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values; load the model's own too."""
        self.module.load_state_dict(state["module"])
        for name, average in self._averages.items():
            average.load_state_dict(state["dropped"][name])
        self.updates = state["updates"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach()


class _Average:
    """One averaged layer, and the averages of weights that were dropped, which a regrown one goes on from."""

    def __init__(self, layer: SparseLayer) -> None:
        self.layer, self.factor = layer, 1.0
        self.positions = layer.positions()[:0]
        self.values = layer.values.detach()[:0].clone()

    def decay(self, factor: float) -> None:
        """Counts an update, in which what is not stored is 0."""
        self.factor *= factor
        self.layer.values.data[self.layer.nnz :] = 0

    @torch.no_grad()
    def follow(self, positions: Tensor) -> None:
        """Moves with the model's layer."""
        layer = self.layer
        there = torch.cat([layer.positions(), self.positions])
        averages = torch.cat([layer.values.detach()[: layer.nnz], self.values * self.factor])
        layer._lineage.follow(positions)
        there, order = there.sort()
        averages, stored = averages[order], layer.positions()
        if there.numel():
            at = torch.searchsorted(there, stored).clamp_(max=there.numel() - 1)
            found = there[at] == stored
            layer.values.data[: stored.numel()][found] = averages[at[found]]
        gone = ~torch.isin(there, stored)
        self.positions, self.values, self.factor = there[gone], averages[gone], 1.0

    def reserve(self, capacity: int) -> None:
        """Makes room with the model's layer."""
        self.layer._lineage.reserve(capacity)

    def state_dict(self) -> dict[str, Tensor]:
        return {"positions": self.positions.clone(), "values": self.values * self.factor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        values = self.layer.values
        self.positions, self.factor = state["positions"].to(values.device), 1.0
        self.values = state["values"].to(values.device, values.dtype)

    def harden(self, order: Tensor) -> None:
        """Permutes as the model's layer."""
        self.layer._lineage.harden(order)
