"""Learned thresholds: STR, and AutoSparse's gradient annealing."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from spfde.sparse.no_sync import nonzero_all
from spfde.topology.base import Topology
from spfde.topology.history import Shift
from spfde.topology.layers import LayerState, sparse_layers
from spfde.topology.options import option


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, threshold, below):
        ctx.save_for_backward(values, threshold)
        ctx.below = below
        return values.sign() * (values.abs() - threshold).clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        values, threshold = ctx.saved_tensors
        above = values.abs() > threshold
        return torch.where(above, grad, ctx.below * grad), -(grad * values.sign())[above].sum(), None


class SoftThreshold(nn.Module):
    """w = sign(v) max(|v| - t, 0) with a learned t = sigmoid(raw); below t the gradient of v is `below` times w's."""

    def __init__(self, raw: float, below: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(float(raw)))
        self.below = below

    @property
    def threshold(self) -> Tensor:
        """t, a scalar in (0, 1)."""
        return self.raw.sigmoid()

    def forward(self, values: Tensor) -> Tensor:
        """Return w of v, any shape."""
        return _Shrink.apply(values, self.threshold.to(values.dtype), self.below)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"threshold={float(self.threshold.detach()):.3g}, below={self.below:.3g}"


def learn_thresholds(model: nn.Module, *, raw: float = -8.0, annealing: float = 0.0) -> nn.Module:
    """Gives every sparse layer of `model` a learned soft threshold, in place; build the optimizer afterwards.

    annealing = 0 is STR (2002.03231): a weight below the threshold gets no gradient. annealing in (0, 1] is AutoSparse
    (2304.06941; 0.75 there): it gets that share of it, which `Thresholds` anneals to 0. raw: sigmoid(raw) is the first
    threshold. The optimizer's weight decay on `transform.raw` sets how sparse STR becomes.

    Raises:
        ValueError: annealing is outside [0, 1], the model has no sparse layer, or one has a transform already.
    """
    if not 0 <= annealing <= 1:
        raise ValueError(f"expected annealing in [0, 1], got {annealing}")
    for layer in sparse_layers(model, plain=True).values():
        layer.transform = SoftThreshold(raw, annealing).to(layer.values.device, layer.values.dtype)
    return model


class Thresholds(Topology):
    """Anneals the gradient below learned thresholds to 0, then stops storing what lies below them.

    Start from a dense or nearly dense model (spfde.sparsify(model, 0.0)) and `learn_thresholds`. The share of the
    gradient falls as a cosine to 0 at `end` of the training; from then on every update drops the blocks that are 0
    altogether, for good. That is what makes the training faster; it departs from STR only where a threshold falls
    again. The sparsity is what comes out.
    """

    default_drop = None
    refused = ("fan-in",)
    transforms = (SoftThreshold,)
    end: float = option(0.75, "[0, 1]", "share of the training after which updates drop what is 0")

    def setup(self) -> None:
        for name, layer in self.layers.items():
            if not isinstance(layer._modules.get("transform"), SoftThreshold):
                raise ValueError(
                    f"expected a learned threshold in {name!r}, got none, try spfde.topology.learn_thresholds(model) "
                    f"before building the optimizer"
                )
        self.annealing = {name: layer.transform.below for name, layer in self.layers.items()}
        self.after_step()

    def after_step(self) -> None:
        end = self.end * self.total_steps
        share = 0.0 if self.steps_done >= end else (1 + cos(pi * self.steps_done / end)) / 2
        for name, layer in self.layers.items():
            layer.transform.below = share * self.annealing[name]

    def due(self, step: int) -> bool:
        return super().due(step) and step >= self.end * self.total_steps

    def keep_all(self, layers: Mapping[str, LayerState], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {name: layer.module._effective()[: layer.nnz] for name, layer in layers.items()}
        return nonzero_all({name: (weight != 0).flatten(1).any(1) for name, weight in weights.items()})

    def exchange(self, layer: LayerState, score: Tensor, kept: Tensor, count: int) -> Shift | None:
        if kept.numel() == layer.nnz:
            return None
        shift = self.move(layer, layer.positions[kept])
        self.target[layer.name] = shift.after
        return shift

    def own_state(self) -> dict[str, Any]:
        return {"annealing": dict(self.annealing)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.annealing = dict(state["annealing"])
        self.after_step()
