"""FLOPs of a training step, layer by layer: 2 per multiply-add, backward = input gradient + weight gradient.

Normalisation, activations, products of two activations and the optimizer are not counted, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spfde._modules import batch_size, eval_mode, run, tensors
from spfde.nn import SparseConvTranspose2d, SparseLayer, SparseMultiheadAttention
from spfde.nn.kinds import has_kind
from spfde.nn.weighted import weighted, weighted_layers

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)  # they read weights and multiply nothing


@dataclass(frozen=True)
class LayerWork:
    """Multiply-adds of one layer per sample.

    positions: output positions each weight is used at (convolution: height x width; linear: tokens).
    weights: stored weights. first: whether its input needs no gradient. trained: those of the weights that a weight
    gradient is computed for, all if None.
    """

    name: str
    positions: int
    weights: int
    first: bool
    trained: int | None = None

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass per sample."""
        return 2 * self.weights * self.positions

    @property
    def weight_grad(self) -> int:
        """FLOPs of the weight gradient per sample."""
        return self.forward if self.trained is None else 2 * self.trained * self.positions

    @property
    def backward(self) -> int:
        """FLOPs of the backward pass per sample: weight gradient, and input gradient unless first."""
        return self.weight_grad + (0 if self.first else self.forward)


def stored_weights(module: nn.Module) -> int:
    """The number of weights a layer multiplies."""
    if isinstance(module, SparseLayer):
        return module.stored
    return sum(entry.size for entry in weighted(module) if entry.module is module)


def trained_weights(layer: nn.Module) -> int:
    """Those that a layer computes a weight gradient for while it trains: stored and not frozen by themselves."""
    live = layer.plan.live if isinstance(layer, SparseLayer) else None
    if live is None:
        return stored_weights(layer)
    return 0 if live.plan is None else live.plan.weights


@torch.no_grad()
def positions(model: nn.Module, example_input: Any) -> dict[nn.Module, int]:
    """At how many positions one forward pass uses the weights of each layer, by layer in execution order.

    A weight of a convolution is used at every pixel of the output (of the input if it is transposed), any other at
    every token, for all of the batch; an embedding is read, not used. A layer that runs several times counts all its
    runs. One whose parent reads `.weight` and multiplies by itself counts, last, the tokens of the parent's output:
    an nn.MultiheadAttention's projections, and sparse layers. What a module does with bare Parameters is not known.

    example_input: a batch (a tuple: positional arguments, a mapping: keywords). Runs the model once in eval mode; modes
    are restored.
    """
    packed = [
        m
        for m in model.modules()
        if isinstance(m, nn.MultiheadAttention) and not isinstance(m, SparseMultiheadAttention)
    ]
    projections = {m.out_proj for m in packed}
    layers = {name: e.module for name, e in weighted_layers(model).items() if not isinstance(e.module, LOOKUPS)}
    wanted = {*layers.values(), *packed}
    found: dict[nn.Module, int] = {}
    tokens: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = next(tensors(output), None)
        if first is None or not first.dim():
            return
        ran = first.numel() // max(1, first.shape[-1])
        tokens[module] = tokens.get(module, 0) + ran
        if module in wanted:
            found[module] = found.get(module, 0) + (_pixels(module, args, first) if _is_convolution(module) else ran)

    sparse = [layer for layer in layers.values() if isinstance(layer, SparseLayer)]
    restore = [layer.forget_input() for layer in sparse]
    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with eval_mode(model):
            run(model, example_input)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in sparse:
        if layer not in found and layer.choice is not None and not layer.weight_taken:  # multiplied by its parent
            found[layer] = layer.choice.problem.positions
    for name, layer in layers.items():
        taken = layer in projections or (isinstance(layer, SparseLayer) and layer.weight_taken)
        if taken and layer not in found:
            found[layer] = _tokens_around(name, model, tokens)
    for bring_back in restore:
        bring_back()
    return found


def _is_convolution(module: nn.Module) -> bool:
    """Whether the first dimension of a layer's weight counts channels, of the output (of the input if transposed)."""
    shape = module.shape if isinstance(module, SparseLayer) else module.weight.shape if has_kind(module) else ()
    return isinstance(module, _ConvNd) or len(shape) > 2


def _pixels(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> int:
    channels = module.shape[0] if isinstance(module, SparseLayer) else module.weight.shape[0]
    seen = next(tensors(args)) if isinstance(module, _ConvTransposeNd | SparseConvTranspose2d) else output
    return seen.numel() // max(1, channels)


def _tokens_around(name: str, model: nn.Module, tokens: dict[nn.Module, int]) -> int:
    """The tokens of the nearest module around a layer that ran."""
    while name:
        name = name.rpartition(".")[0]
        if (around := model.get_submodule(name)) in tokens:
            return tokens[around]
    return 0


def layer_work(model: nn.Module, example_input: Any) -> dict[str, LayerWork]:
    """The work of every weighted layer that one forward pass uses, in execution order.

    example_input: a batch (a tuple: positional arguments, a mapping: keywords), whose size is the first dimension of
    its first tensor. Runs the model once in eval mode; modes are restored. What is counted at how many positions is
    said in `positions`.
    """
    batch = max(1, batch_size(example_input))
    names = {module: name for name, module in model.named_modules()}
    return {
        names[module]: LayerWork(
            names[module], used // batch, stored_weights(module), first=i == 0, trained=trained_weights(module)
        )
        for i, (module, used) in enumerate(positions(model, example_input).items())
    }
