"""A block: the unit that is frozen, with what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from spfde.flops import LayerWork, stored_weights, trained_weights
from spfde.freezing.freeze import check_unshared, fix, hold, is_constant, release
from spfde.freezing.wrapped import check_wrapped


@dataclass(frozen=True, eq=False)
class TracedLayer:
    """One layer and its work as it was when the model was traced.

    fixed_at: how many front blocks must be frozen for its weight gradient not to be computed. cut_at: how many for the
    gradient of its input. 0: it never is, inf: it always is.
    """

    module: nn.Module = field(repr=False)
    traced: LayerWork
    fixed_at: float = math.inf
    cut_at: float = math.inf

    @property
    def work(self) -> LayerWork:
        """The work at the layer's present density."""
        return replace(self.traced, weights=stored_weights(self.module), trained=trained_weights(self.module))

    @property
    def credit(self) -> int:
        """Backward FLOPs of one sample that freezing saves; behind what never freezes, those of the weight gradient."""
        return self.work.weight_grad if self.cut_at == math.inf else self.work.backward

    def training(self, front: int) -> int:
        """FLOPs of one sample in a training step with the first `front` blocks frozen."""
        work = self.work
        return work.forward * (1 + (front < self.cut_at)) + work.weight_grad * (front < self.fixed_at)


@dataclass(frozen=True, eq=False)
class FreezeBlock:
    """Modules that are frozen together.

    Attributes:
        name: qualified name of the module that gives the block its name.
        modules: (qualified name, module), in execution order.
        layers: the layers whose work is the block's. Those of the stem are not, although the stem freezes
            with the first block: the paper credits only what the blocks themselves save.
        parameters: (qualified name, parameter) that the model uses directly, outside any block, and that are
            frozen with this one (a position embedding).
        rest: the layers of the model that are no block's (stem and head); the same in every block of a model.
        active: single modules inside of `modules` that are never frozen, as the model uses them or their parameters
            in another place too; the same in every block of a model.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...] = field(repr=False)
    layers: tuple[TracedLayer, ...] = field(default=(), repr=False)
    parameters: tuple[tuple[str, nn.Parameter], ...] = field(default=(), repr=False)
    rest: tuple[TracedLayer, ...] = field(default=(), repr=False)
    active: frozenset[nn.Module] = field(default=frozenset(), repr=False)

    @property
    def members(self) -> tuple[nn.Module, ...]:
        """Every single module that freezes with the block."""
        inside = dict.fromkeys(m for _, module in self.modules for m in module.modules())
        return tuple(m for m in inside if m not in self.active)

    @property
    def trainable(self) -> tuple[nn.Parameter, ...]:
        """Every parameter that freezes with the block."""
        own = [p for m in self.members for p in m.parameters(recurse=False)]
        return tuple(dict.fromkeys([*(p for _, p in self.parameters), *own]))

    @property
    def work(self) -> tuple[LayerWork, ...]:
        """Work of each layer at its present density."""
        return tuple(layer.work for layer in self.layers)

    @property
    def forward(self) -> int:
        """FLOPs of one sample's forward pass, at the present densities."""
        return sum(work.forward for work in self.work)

    @property
    def backward(self) -> int:
        """FLOPs of one sample's backward pass, at the present densities."""
        return sum(work.backward for work in self.work)

    @property
    def credit(self) -> int:
        """Those of the backward FLOPs that freezing saves: behind a part that stays active, the weight gradients."""
        return sum(layer.credit for layer in self.layers)

    @property
    def is_frozen(self) -> bool:
        """Whether all of it is frozen now."""
        return is_constant(self.members)

    def freeze(self) -> None:
        """Makes the block constant (`spfde.freezing.freeze`), but for what stays active."""
        hold(self.members)
        fix(parameter for _, parameter in self.parameters)

    def unfreeze(self) -> None:
        """Gives the block back to the training."""
        release(self.members)
        for _, parameter in self.parameters:
            parameter.requires_grad_(True)


def check_freezable(blocks: Iterable[FreezeBlock], model: nn.Module) -> None:
    """Checks that `blocks` of a model can be frozen together. Changes nothing.

    Raises:
        ValueError: they share state with a part that stays active, or nothing would be left to train.
        RuntimeError: a DistributedDataParallel around them would wait for their gradients.
    """
    blocks = list(blocks)
    modules = [module for block in blocks for _, module in block.modules]
    check_unshared(modules, model, active=frozenset(m for block in blocks for m in block.active))
    check_wrapped([p for block in blocks for p in block.trainable])
    fixed = {id(p) for block in blocks for p in block.trainable}
    if all(id(p) in fixed for p in model.parameters() if p.requires_grad):
        raise ValueError(
            f"expected some parameter to stay trainable, got {len(blocks)} blocks to freeze, all that the model "
            "still trains; try a smaller fraction, or a model with a head"
        )
