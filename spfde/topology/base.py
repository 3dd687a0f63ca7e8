"""What every dynamic sparse training method shares: when an update is due, and that it is a permutation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.nn.layer import permute
from spfde.topology.birth import keep_highest_in_groups


class Topology(ABC):
    """Moves the stored weights of a model's sparse layers during training.

    Call `step()` after every optimizer step. An update keeps values and every optimizer state tensor of kept weights
    in place; newborn weights and their state are 0; the Parameter objects and their shapes stay. Layers whose values
    do not require grad (frozen) are left alone. One seed gives one result, on every rank.

    model: has spfde sparse layers. optimizer: built after spfde.sparsify. total_steps: optimizer steps of the whole
    training. every: optimizer steps between updates. drop_fraction: share of a layer's stored weights that an update
    moves at first, in [0, 1]. seed: of random growth.

    Raises:
        ValueError: an argument is out of range, the model has no sparse layer, or the optimizer does not hold one's
            values.
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
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"expected total_steps >= 1, got {total_steps}")
        if every < 1:
            raise ValueError(f"expected every >= 1 (optimizer steps between updates), got {every}")
        if not 0 <= drop_fraction <= 1:
            raise ValueError(f"expected drop_fraction in [0, 1] (share of the stored weights), got {drop_fraction}")
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
        if not self.layers:
            raise ValueError("expected a model with sparse layers, got none, try spfde.sparsify(model) first")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, layer in self.layers.items():
            if layer.values.requires_grad and id(layer.values) not in held:
                raise ValueError(
                    f"expected the optimizer to hold the values of {name!r}, got one that does not (was it built "
                    f"before spfde.sparsify?), try building the optimizer afterwards"
                )
        self.optimizer = optimizer
        self.every = every
        self.total_steps = total_steps
        self.target = {name: layer.nnz for name, layer in self.layers.items()}
        self.reason = "no update yet"
        self._settled: set[str] = set()
        self._step = 0
        self._generator = torch.Generator().manual_seed(seed)

    def step(self) -> bool:
        """Follows one optimizer step; True when a mask moved."""
        self._step += 1
        if self._step % self.every or self._step >= self.total_steps:
            return False
        return self.update()

    @torch.no_grad()
    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""
        moved = 0
        for name, layer in self.layers.items():
            if name not in self._settled and layer.values.requires_grad:
                moved += self._update_layer(layer)
        self.reason = f"{type(self).__name__} moved {moved} weights at step {self._step}"
        return moved > 0

    @torch.no_grad()
    def settle(self, module: nn.Module) -> list[str]:
        """Brings the layers inside `module` exactly to their target count and stops moving them; their names.

        For what is about to freeze: a frozen layer cannot be pruned to the target any more.
        """
        inside = set(module.modules())
        names = [name for name, layer in self.layers.items() if layer in inside and name not in self._settled]
        for name in names:
            layer = self.layers[name]
            surplus = layer.nnz - self.target[name]
            if surplus > 0:
                self._move(layer, self._highest(layer, self.target[name]))
            self._settled.add(name)
        return names

    def state_dict(self) -> dict[str, Any]:
        """Step counter, targets and random state; the topology itself is in the model's state_dict."""
        return {
            "step": self._step,
            "target": dict(self.target),
            "settled": sorted(self._settled),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`'s values.

        Raises:
            ValueError: the state is of a model with other layers.
        """
        if set(state["target"]) != set(self.layers):
            missing = sorted(set(state["target"]) ^ set(self.layers))
            raise ValueError(
                f"expected the state of a model with the same sparse layers, got a difference in {missing}"
            )
        self._step = state["step"]
        self.target = dict(state["target"])
        self._settled = set(state["settled"])
        self._generator.set_state(state["generator"])

    @staticmethod
    def _highest(layer: SparseLayer, count: int) -> Tensor:
        """Positions of the `count` stored blocks of the largest magnitude, as the pattern allows."""
        positions, rule, grid = layer.positions(), layer.structure, layer.grid
        score = layer.values.detach().abs().sum((1, 2))[: layer.nnz]
        group, quota = rule.groups(grid, score.device)[positions], rule.quota(grid, count, score.device)
        return positions[keep_highest_in_groups(score, group, quota)]

    @abstractmethod
    def _update_layer(self, layer: SparseLayer) -> int:
        """Moves the weights of one layer; returns how many."""

    def _move(self, layer: SparseLayer, positions: Tensor, newborn: Tensor | None = None) -> None:
        """Changes a layer's positions and carries its optimizer state along."""
        shape = layer.values.shape
        source = layer.move_to(positions, newborn)
        for state in self.optimizer.state.get(layer.values, {}).values():
            if isinstance(state, Tensor) and state.shape == shape:
                permute(state, source)
