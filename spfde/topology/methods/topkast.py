"""Top-KAST: a sparse forward set, and a larger backward set whose extra weights explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spfde.kernels.call import weight_gradient
from spfde.nn import SparseLayer
from spfde.sparse.index import index_from_positions, permute
from spfde.sparse.plan import Plan, build_plan
from spfde.topology.base import Topology
from spfde.topology.history import Shift
from spfde.topology.layers import LayerState
from spfde.topology.moves import count_groups, highest
from spfde.topology.options import option
from spfde.topology.topk import keep_highest_in_groups


class Exploration:
    """The blocks at `positions` (ascending) live in the slots of `values` after the stored ones, which no kernel reads.

    Their gradient is computed at these positions only, in the layer's own backward, and added before the gradient
    reaches `values.grad`, so that averaging over ranks, clipping, scaling and the optimizer treat all slots alike.
    penalty: of the L2 term, times w on stored blocks and times w / density on explored ones.
    """

    def __init__(self, layer: SparseLayer, positions: Tensor, penalty: float) -> None:
        self.layer, self.penalty = layer, penalty
        self.grad: Tensor | None = None
        self._pass: int | None = None
        self.plan: Plan | None = None
        self.place(positions)
        layer._grad_probe = self
        self._handle = layer.values.register_hook(self._add)

    def detach(self) -> None:
        """Follows the layer's backward passes no longer."""
        self.layer._grad_probe = None
        self._handle.remove()

    def place(self, positions: Tensor) -> None:
        """Changes the explored positions."""
        layer = self.layer
        self.positions = positions
        index = index_from_positions(positions, *layer.grid.shape, positions.numel())
        plan = build_plan(index, layer.shape, layer.window, layer.grid, positions=positions)
        if self.plan is None:
            self.plan = plan
        else:  # whatever reads its tensors, a CUDA graph too, reads the new positions
            self.plan.update_(plan)

    @property
    def slots(self) -> slice:
        """Where the explored blocks are in `values`."""
        return slice(self.layer.nnz, self.layer.nnz + self.positions.numel())

    @torch.no_grad()
    def __call__(self, dy: Tensor, x: Tensor | None = None) -> None:
        """One backward pass. dy: gradient of the output for input x, or that of the dense weight itself."""
        layer, dtype = self.layer, self.layer.values.dtype
        now = torch._C._current_graph_task_id()
        if now != self._pass:  # an earlier pass that never reached `values` is none that the optimizer sees
            self._pass, self.grad = now, None
        dy = dy.detach().to(dtype)
        if x is None:
            grad = layer.grid.cut(dy)[self.positions]
        else:
            grad = weight_gradient(dy, x.to(dtype), self.plan, layer.dispatch_key)
        self.grad = grad if self.grad is None else self.grad + grad

    def _add(self, grad: Tensor) -> Tensor:
        """The gradient of all slots of `values`."""
        layer, found = self.layer, self.grad
        if found is None:
            raise ValueError(
                "expected Top-KAST to follow this backward pass, got a gradient from elsewhere (a compiled model?), "
                "try the model itself, uncompiled"
            )
        self.grad = None
        grad, values = grad.clone(), layer.values.detach()
        grad[self.slots] += found
        if self.penalty:
            density = layer.nnz / max(1, layer.grid.size)
            grad[: layer.nnz] += self.penalty * values[: layer.nnz]
            grad[self.slots] += self.penalty / max(density, 1e-12) * values[self.slots]
        return grad

    def __getstate__(self) -> dict:
        return {"layer": self.layer, "positions": self.positions, "penalty": self.penalty}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


class TopKAST(Topology):
    """The forward uses the largest weights; those and the next `extra` times as many get gradients and are trained.

    Every update takes both sets anew, by |w| over *all* weights: `layer.mask()` is the forward set,
    `backward_mask(name)` the larger one. A weight outside both keeps its value, in a dense buffer of the topology; it
    starts as a draw from the stored weights, as if the dense initialisation had been kept. So here grown weights do not
    start at 0; their optimizer state does. The loss gets penalty / 2 (sum of w^2 stored + sum of w^2 explored /
    density). Exploration ends with the training. Source: Top-KAST (2106.03517).

    Room for the backward set is reserved in `values`. The extra gradient is computed at its positions only.
    """

    default_drop = None
    refused = ("n:m",)
    keeps_frozen = False  # every weight may leave the forward set
    extra: float = option(1.0, "(0, inf)", "size of the exploration set, in multiples of the forward set")
    penalty: float = option(1e-4, "[0, inf)", "of the L2 term; use it in place of the optimizer's weight decay")

    def setup(self) -> None:
        self.reserve({name: self._both(layer) for name, layer in self.layers.items()})
        self.reservoir = {name: self._drawn(layer) for name, layer in self.layers.items()}
        self.explorations: dict[str, Exploration] = {}
        for name in self.live():
            self._explore(name)

    def backward_mask(self, name: str) -> Tensor:
        """Bool mask of the dense shape: the weights of a layer that get a gradient."""
        layer = self.layers[name]
        mask = layer.rows_first(layer.mask()).contiguous()
        if name in self.explorations:
            places = layer.grid.places(self.explorations[name].positions).view(-1)
            mask.view(-1)[places[places < layer.grid.weights]] = True
        return layer.as_dense(mask)

    def settle(self, module: nn.Module) -> list[str]:
        """Ends the exploration of the layers inside `module`, for what is about to freeze; their names."""
        names = super().settle(module)
        for name in names:
            self._close(name)
        return names

    def finish(self) -> int:
        for name in list(self.explorations):
            self._close(name)
        return 0

    @property
    def armed(self) -> bool:
        """Always: it follows every backward pass."""
        return bool(self.explorations)

    def live(self) -> dict[str, SparseLayer]:
        """The layers that may move: not frozen, not empty."""
        return {name: layer for name, layer in super().live().items() if layer.nnz}

    def after_step(self) -> None:
        live = self.live()
        for name in [name for name in self.explorations if name not in live]:  # frozen
            self._close(name)
        if self.steps_done < self.total_steps:
            for name in [name for name in live if name not in self.explorations]:  # frozen no longer
                self._explore(name)

    def exchange(self, layer: LayerState, score: Tensor, kept: Tensor, count: int) -> Shift | None:
        theta = self._everything(layer.name)
        magnitude = theta.abs().sum((1, 2))
        return self._choose(layer, theta, magnitude, keep_highest_in_groups(magnitude, layer.group, layer.quota(count)))

    @torch.no_grad()
    def _choose(self, state: LayerState, theta: Tensor, magnitude: Tensor, forward: Tensor) -> Shift:
        """Makes `forward` the forward set and the next largest weights the exploration."""
        name, layer = state.name, state.module
        exploration, before = self.explorations[name], layer.nnz
        both = state.quota(self._both(layer))
        need = (both - count_groups(state.group, both.numel(), forward)).clamp_(min=0)
        explored = highest([(0, magnitude)], state.group, forward, need)[0]
        old, new = torch.cat([state.positions, exploration.positions]), torch.cat([forward, explored])
        slot = torch.full((layer.grid.size,), -1, dtype=torch.int32, device=old.device)
        slot[old] = torch.arange(old.numel(), dtype=torch.int32, device=old.device)
        source = torch.full((layer.values.shape[0],), -1, dtype=torch.int64, device=old.device)
        source[: new.numel()] = slot[new]
        grad = None if layer.values.grad is None else layer.values.grad.clone()
        grown = (layer._move(forward)[: forward.numel()] < 0).count_nonzero()
        layer.values.data[: new.numel()] = theta[new]
        if grad is not None:
            permute(grad, source)
            layer.values.grad.copy_(grad)
        self.carry(layer, source)
        exploration.place(explored)
        self.reservoir[name] = theta
        self._history[name].see(forward)
        return Shift(before, layer.nnz, grown)

    def record(self, name: str, shift: Shift, new: int) -> None:
        if new:  # the sets are taken anew at every update, mostly the same
            super().record(name, shift, new)

    def _everything(self, name: str) -> Tensor:
        """All weights of a layer, trained or not: [grid size, R, C]."""
        layer, theta = self.layers[name], self.reservoir[name].clone()
        values, exploration = layer.values.detach(), self.explorations[name]
        theta[layer.positions()] = values[: layer.nnz]
        theta[exploration.positions] = values[exploration.slots]
        return theta

    def _both(self, layer: SparseLayer) -> int:
        return min(layer.grid.size, layer.nnz + max(1, round(self.extra * layer.nnz)))

    def _drawn(self, layer: SparseLayer) -> Tensor:
        size, device = layer.grid.size, layer.values.device
        if not layer.nnz:
            return layer.values.new_zeros(size, *layer.grid.block)
        drawn = torch.randint(layer.nnz, (size,), generator=self.generator).to(device)
        return layer.values.detach()[drawn]

    def _explore(self, name: str) -> None:
        """Starts the exploration of a layer with the largest weights outside its forward set."""
        layer = self.layers[name]
        state = LayerState.of(name, layer)
        self.explorations[name] = Exploration(layer, state.positions.new_empty(0), self.penalty)
        theta = self._everything(name)
        self._choose(state, theta, theta.abs().sum((1, 2)), state.positions)

    @torch.no_grad()
    def _close(self, name: str) -> None:
        """Ends a layer's exploration: its weights go to the buffer, its slots are dead again."""
        if name in self.explorations:
            self.reservoir[name] = self._everything(name)
            exploration = self.explorations.pop(name)
            exploration.layer.values.data[exploration.slots] = 0
            exploration.detach()

    def own_state(self) -> dict[str, Any]:
        return {
            "reservoir": {name: theta.clone() for name, theta in self.reservoir.items()},
            "explored": {name: one.positions.clone() for name, one in self.explorations.items()},
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name in [name for name in self.explorations if name not in state["explored"]]:
            self.explorations.pop(name).detach()
        for name, theta in state["reservoir"].items():
            self.reservoir[name] = theta.to(self.reservoir[name])
        for name, positions in state["explored"].items():
            layer = self.layers[name]
            positions = positions.to(layer.values.device)
            if name in self.explorations:
                self.explorations[name].place(positions)
            elif layer.values.requires_grad:
                self.explorations[name] = Exploration(layer, positions, self.penalty)
            else:  # frozen before it was saved, and not settled: as `after_step` would
                slots = slice(layer.nnz, layer.nnz + positions.numel())
                self.reservoir[name][positions] = layer.values.detach()[slots]
                layer.values.data[slots] = 0
