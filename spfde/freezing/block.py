"""A block: the unit that is frozen, with what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from spfde.flops import LayerWork, stored_weights


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer and its work as it was when the model was traced."""

    module: nn.Module = field(repr=False)
    traced: LayerWork

    @property
    def work(self) -> LayerWork:
        """The work at the layer's present density."""
        return replace(self.traced, weights=stored_weights(self.module))


@dataclass(frozen=True, eq=False)
class Block:
    """Modules that are frozen together.

    Attributes:
        name: qualified name of the module that gives the block its name.
        modules: (qualified name, module), in execution order.
        layers: the layers whose work is the block's. Those of the stem are not, although the stem freezes
            with the first block: the paper credits only what the blocks themselves save.
        parameters: (qualified name, parameter) that the model uses directly, outside any block, and that are
            frozen with this one (a position embedding).
        rest: the layers of the model that are no block's (stem and head); the same in every block of a model.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...] = field(repr=False)
    layers: tuple[Layer, ...] = field(default=(), repr=False)
    parameters: tuple[tuple[str, nn.Parameter], ...] = field(default=(), repr=False)
    rest: tuple[Layer, ...] = field(default=(), repr=False)

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
        """FLOPs of one sample's backward pass, at the present densities: the credit for freezing it."""
        return sum(work.backward for work in self.work)
