"""Top-KAST: a sparse forward set, and a larger backward set whose extra weights explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.nn.layer import permute
from spfde.topology.base import Topology
from spfde.topology.history import Shift
from spfde.topology.layers import count_groups
from spfde.topology.methods.exploration import Exploration
from spfde.topology.moves import highest
from spfde.topology.topk import keep_highest_in_groups


class TopKAST(Topology):
    """The forward uses the largest weights; those and the next `extra` times as many get gradients and are trained.

    Every update takes both sets anew, by |w| over *all* weights: `layer.mask()` is the forward set,
    `backward_mask(name)` the larger one. A weight outside both keeps its value, in a dense buffer of the topology; it
    starts as a draw from the stored weights, as if the dense initialisation had been kept. So here grown weights do not
    start at 0; their optimizer state does. The loss gets penalty / 2 (sum of w^2 stored + sum of w^2 explored /
    density). Exploration ends with the training. Source: Top-KAST (2106.03517).

    Room for the backward set is reserved in `values`. The extra gradient is computed at its positions only.

    extra: size of the exploration set, in multiples of the forward set, > 0. penalty: >= 0; use it in place of the
    optimizer's weight decay. drop_fraction: has no meaning here. The rest: see Topology.

    Raises:
        ValueError: see Topology; or extra or penalty is out of range.
    """

    default_drop = None
    refused = ("n:m",)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        extra: float = 1.0,
        penalty: float = 1e-4,
    ) -> None:
        if extra <= 0:
            raise ValueError(f"expected extra > 0 (multiples of the forward set), got {extra}")
        if penalty < 0:
            raise ValueError(f"expected penalty >= 0, got {penalty}")
        super().__init__(model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed)
        self.extra, self.penalty = extra, penalty
        self._reserve({name: self._both(layer) for name, layer in self.layers.items()})
        self.reservoir = {name: self._drawn(layer) for name, layer in self.layers.items()}
        empty = torch.empty(0, dtype=torch.int64)
        self.explorations = {
            name: Exploration(layer, empty.to(layer.values.device), penalty)
            for name, layer in self._live().items()
            if layer.nnz
        }
        for name in self.explorations:
            theta = self._everything(name)
            self._choose(name, theta, theta.abs().sum((1, 2)), self.layers[name].positions())

    def backward_mask(self, name: str) -> Tensor:
        """Bool mask of the dense shape: the weights of a layer that get a gradient."""
        layer = self.layers[name]
        mask = layer.mask()
        if name in self.explorations:
            places = layer.grid.places(self.explorations[name].positions).view(-1)
            mask.view(-1)[places[places < layer.grid.weights]] = True
        return mask

    def settle(self, module: nn.Module) -> list[str]:
        """Stops moving and exploring in the layers inside `module`; their names."""
        names = super().settle(module)
        for name in names:
            self._close(name)
        return names

    def _live(self) -> dict[str, SparseLayer]:
        return {name: layer for name, layer in super()._live().items() if layer.nnz}

    def _exchange(self, name: str, layer: SparseLayer, score: Tensor, stays: Tensor, count: int) -> Shift | None:
        if name not in self.explorations:
            return None
        theta, rule = self._everything(name), layer.pattern
        magnitude, group = theta.abs().sum((1, 2)), rule.groups(layer.grid, score.device)
        forward = keep_highest_in_groups(magnitude, group, rule.quota(layer.grid, count, score.device))
        return self._choose(name, theta, magnitude, forward)

    @torch.no_grad()
    def _choose(self, name: str, theta: Tensor, magnitude: Tensor, forward: Tensor) -> Shift:
        """Makes `forward` the forward set and the next largest weights the exploration."""
        layer, exploration = self.layers[name], self.explorations[name]
        group = layer.pattern.groups(layer.grid, forward.device)
        both = layer.pattern.quota(layer.grid, self._both(layer), forward.device)
        need = (both - count_groups(group, both.numel(), forward)).clamp_(min=0)
        explored = highest([(0, magnitude)], group, forward, need)[0]
        old = torch.cat([layer.positions(), exploration.positions])
        slot = torch.full((layer.grid.size,), -1, dtype=torch.int32, device=old.device)
        slot[old] = torch.arange(old.numel(), dtype=torch.int32, device=old.device)
        new = torch.cat([forward, explored])
        source = torch.full((layer.values.shape[0],), -1, dtype=torch.int64, device=old.device)
        source[: new.numel()] = slot[new]
        grad = None if layer.values.grad is None else layer.values.grad.clone()
        before = layer.nnz
        born = (layer._move(forward)[: forward.numel()] < 0).count_nonzero()
        layer.values.data[: new.numel()] = theta[new]
        if grad is not None:
            permute(grad, source)
            layer.values.grad.copy_(grad)
        for state in self.optimizer.state.get(layer.values, {}).values():
            if isinstance(state, Tensor) and state.shape == layer.values.shape:
                permute(state, source)
        exploration.place(explored)
        self.reservoir[name] = theta
        self._history[name].see(forward)
        return Shift(before, layer.nnz, born)

    def _record(self, name: str, shift: Shift, born: int) -> None:
        if born:  # the sets are taken anew at every update, mostly the same
            super()._record(name, shift, born)

    def _everything(self, name: str) -> Tensor:
        """All weights of a layer, trained or not: [grid size, R, C]."""
        layer, exploration = self.layers[name], self.explorations[name]
        theta, values = self.reservoir[name].clone(), layer.values.detach()
        theta[layer.positions()] = values[: layer.nnz]
        theta[exploration.positions] = values[exploration.slots]
        return theta

    def _both(self, layer: SparseLayer) -> int:
        return min(layer.grid.size, layer.nnz + max(1, round(self.extra * layer.nnz)))

    def _drawn(self, layer: SparseLayer) -> Tensor:
        size, device = layer.grid.size, layer.values.device
        if not layer.nnz:
            return layer.values.new_zeros(size, *layer.grid.block)
        drawn = torch.randint(layer.nnz, (size,), generator=self._generator).to(device)
        return layer.values.detach()[drawn]

    def _finish(self) -> int:
        for name in list(self.explorations):
            self._close(name)
        return 0

    @torch.no_grad()
    def _close(self, name: str) -> None:
        """Ends a layer's exploration: its slots are dead again."""
        if name in self.explorations:
            exploration = self.explorations.pop(name)
            exploration.layer.values.data[exploration.slots] = 0
            exploration.detach()

    def _own_state(self) -> dict[str, Any]:
        return {
            "reservoir": {name: theta.clone() for name, theta in self.reservoir.items()},
            "explored": {name: one.positions.clone() for name, one in self.explorations.items()},
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        for name, theta in state["reservoir"].items():
            self.reservoir[name] = theta.to(self.reservoir[name])
        for name in [name for name in self.explorations if name not in state["explored"]]:
            self._close(name)
        for name, positions in state["explored"].items():
            self.explorations[name].place(positions.to(self.layers[name].values.device))
