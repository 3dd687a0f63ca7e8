"""FLOPs of a training step, layer by layer: 2 per multiply-add, backward = input gradient + weight gradient.

Normalisation, activations and the optimizer are not counted, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import as_args, eval_mode
from spfde.nn import SparseLayer
from spfde.nn.kinds import has_kind


@dataclass(frozen=True)
class LayerWork:
    """Multiply-adds of one layer per sample.

    positions: output positions each weight is used at (convolution: height x width; linear: tokens).
    weights: stored weights. first: whether its input needs no gradient.
    """

    name: str
    positions: int
    weights: int
    first: bool

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass per sample."""
        return 2 * self.weights * self.positions

    @property
    def backward(self) -> int:
        """FLOPs of the backward pass per sample: weight gradient, and input gradient unless first."""
        return self.forward * (1 if self.first else 2)


def weighted(module: nn.Module) -> bool:
    """Whether a module is a layer whose FLOPs are counted."""
    return isinstance(module, SparseLayer) or has_kind(module)


def stored_weights(module: nn.Module) -> int:
    """The number of weights a layer multiplies."""
    return module.stored if isinstance(module, SparseLayer) else module.weight.numel()


@torch.no_grad()
def layer_work(model: nn.Module, example_input: Any) -> dict[str, LayerWork]:
    """The work of every nn.Linear, nn.Conv2d and sparse layer that one forward pass runs, in execution order.

    example_input: a batched input, or a tuple of inputs. Runs the model once in eval mode; modes are restored.
    A layer that runs several times counts the positions of all its runs.
    """
    inputs = as_args(example_input)
    names = {module: name for name, module in model.named_modules()}
    positions: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        channels = module.weight.shape[0] if not isinstance(module, SparseLayer) else module.shape[0]
        per_sample = output.numel() // max(1, channels * inputs[0].shape[0])
        positions[module] = positions.get(module, 0) + per_sample

    hooks = [module.register_forward_hook(count) for module in names if weighted(module)]
    try:
        with eval_mode(model):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        names[module]: LayerWork(names[module], used, stored_weights(module), first=i == 0)
        for i, (module, used) in enumerate(positions.items())
    }
