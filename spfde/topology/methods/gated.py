"""Methods that train a gate for every block, and weights through gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from spfde.nn import SparseLayer
from spfde.sparse.index import permute
from spfde.topology.layers import LayerState, magnitude
from spfde.topology.methods.shrinking import Shrinking
from spfde.topology.options import option


class Gates(nn.Module):
    """w = z v: one factor for each block in training, another one in evaluation. Neither is in the state_dict.

    trained, evaluated: [capacity, 1, 1]. straight: the gradient of v is that of w, also where its gate is shut.
    """

    trained: Tensor
    evaluated: Tensor

    def __init__(self, trained: Tensor, evaluated: Tensor, straight: bool = False) -> None:
        super().__init__()
        self.straight = straight
        self.register_buffer("trained", trained, persistent=False)
        self.register_buffer("evaluated", evaluated, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return w of v, [capacity, R, C]."""
        gate = (self.trained if self.training else self.evaluated).to(values.dtype)
        gated = values * gate
        return gated + (values - values.detach()) * (1 - gate) if self.straight else gated


class Gated(Shrinking, ABC):
    """A method whose `memory` holds a logit for every block, trained by the method itself after the optimizer's step.

    A step's gates are drawn before it, so all its passes see the same, and `values.grad` is all that is asked for: what
    averaging over ranks, unscaling and clipping made of it holds for the gates as well. A layer's dL/da is divided by
    a running root mean square, so that no step size depends on the scale of the loss. Once a layer is at its target for
    good, and when it is settled, its gates are multiplied into the weights.
    """

    transforms = (Gates,)
    keeps_frozen = False  # its gates scale every stored weight
    straight = False
    gate_lr: float | None = option(None, "[0, inf)", "step size of the logits; None: 100 / (steps of the training)")
    drop_rate: float = option(0.1, "(0, 1)", "probability of a closed gate at the start")
    shut: float = option(0.1, "[0, 0.5)", "a block whose gate is open with less than that is stored no longer")

    @abstractmethod
    def gates(self, name: str) -> tuple[Tensor, Tensor]:
        """The gates [capacity, 1, 1] of the next step, drawn anew, and those of evaluation."""

    @abstractmethod
    def probability(self, logits: Tensor) -> Tensor:
        """That a gate is open, of its logit."""

    @abstractmethod
    def gate_gradient(self, name: str, logits: Tensor, slope: Tensor) -> Tensor:
        """dL/da for the logits a [nnz]. slope: the sum over each block of v dL/dv [nnz] of the step that was taken."""

    @abstractmethod
    def pressure(self, name: str, logits: Tensor) -> Tensor:
        """The gradient [nnz] of what is added to the loss, in units of the root mean square of a layer's dL/da."""

    def start_logit(self) -> float:
        """The logit of a gate at the start."""
        return log((1 - self.drop_rate) / self.drop_rate)

    def setup(self) -> None:
        self._spent: list[Gates] = []
        self.squares: dict[str, Tensor] = {}
        super().setup()
        for name, layer in self.live().items():
            noise = 0.01 * torch.randn(len(layer.values), 1, 1, generator=self.generator)
            logits = (self.start_logit() + noise).to(layer.values)
            self.memory[name] = {"logit": logits, "before": layer.values.detach().clone()}
            layer.transform = Gates(*self.gates(name), straight=self.straight)
            self.squares[name] = logits.new_zeros(())

    def gated(self) -> dict[str, SparseLayer]:
        """The layers that may move and have gates."""
        return {name: layer for name, layer in self.live().items() if name in self.memory}

    @torch.no_grad()
    def after_step(self) -> None:
        for name, layer in self.gated().items():
            if self.over and layer.nnz <= self.target[name]:
                self._fold(name)
            elif layer.values.grad is not None:
                self._train(name, layer)

    def _train(self, name: str, layer: SparseLayer) -> None:
        memory, live = self.memory[name], slice(layer.nnz)
        slope = (memory["before"][live] * layer.values.grad[live]).sum((1, 2))
        logits = memory["logit"].view(-1)[live]
        descent, square = self.gate_gradient(name, logits, slope), self.squares[name]
        now = descent.square().mean() if layer.nnz else square
        square.copy_(torch.where(square > 0, torch.lerp(square, now, 0.1), now))
        rate = 100 / self.total_steps if self.gate_lr is None else self.gate_lr
        logits -= rate * (descent / square.sqrt().clamp(min=1e-20) + self.pressure(name, logits))
        logits.clamp_(-4.6, 4.6)  # as the authors of 2208.04425: a gate must be able to come back
        memory["before"].copy_(layer.values)
        self._set(layer.transform, *self.gates(name))

    def strength(self, layer: LayerState) -> Tensor:
        """The expected magnitude, 0 where the gate is shut."""
        size = magnitude(layer.module)
        if layer.name not in self.memory:
            return size
        opened = self.probability(self.memory[layer.name]["logit"].view(-1)[: layer.nnz])
        # A weight of 0 whose gate is open is not shut.
        return torch.where(opened >= self.shut, opened * size.clamp(min=torch.finfo(size.dtype).tiny), 0)

    def settle(self, module: nn.Module) -> list[str]:
        """Brings the layers inside `module` to their target count and multiplies their gates in; their names."""
        names = super().settle(module)
        for name in names:
            self._fold(name)
        return names

    def finish(self) -> int:
        trimmed = super().finish()
        for name in self.gated():
            self._fold(name)
        return trimmed

    @torch.no_grad()
    def _fold(self, name: str) -> None:
        """Multiplies the gates of evaluation into the weights of a layer, which has none from then on."""
        if self.memory.pop(name, None) is not None:
            layer = self.layers[name]
            layer.values *= layer.transform.evaluated.to(layer.values.dtype)
            self._remove(layer)

    def _remove(self, layer: SparseLayer) -> None:
        """Takes the gates of a layer away; a captured CUDA graph goes on to read them, and finds 1."""
        for gates in layer.transform.buffers():
            gates.fill_(1)
        self._spent.append(layer.transform)
        del layer.transform

    @staticmethod
    def _set(gates: Gates, trained: Tensor, evaluated: Tensor) -> None:
        gates.trained.copy_(trained)
        gates.evaluated.copy_(evaluated)

    def slots_moved(self, layer: LayerState, source: Tensor) -> None:
        super().slots_moved(layer, source)
        if layer.name in self.memory:
            for gates in layer.module.transform.buffers():
                permute(gates, source)

    def own_state(self) -> dict[str, Any]:
        drawn = {name: self.layers[name].transform.trained.clone() for name in self.memory}
        squares = {name: square.clone() for name, square in self.squares.items()}
        return {**super().own_state(), "drawn": drawn, "squares": squares}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name in [name for name in self.memory if name not in state["memory"]]:
            self._remove(self.layers[name])
        super().load_own_state(state)
        self.squares = {n: s.to(self.layers[n].values.device, copy=True) for n, s in state["squares"].items()}
        generator = self.generator.get_state()
        for name, own in self.memory.items():
            layer = self.layers[name]
            if not isinstance(layer._modules.get("transform"), Gates):
                layer.transform = Gates(own["logit"].clone(), own["logit"].clone(), straight=self.straight)
            self._set(layer.transform, state["drawn"][name], self.gates(name)[1])
        self.generator.set_state(generator)
