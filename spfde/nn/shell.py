"""What is left of a dense layer when its weight is stored sparse: enough to give the very layer back."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def shell_of(layer: nn.Module) -> nn.Module:
    """A copy of a layer without its weight and bias: its class, its options, what else it holds."""
    state = {key: value for key, value in vars(layer).items() if key not in ("_parameters", "train")}
    shell = layer.__class__.__new__(layer.__class__)
    shell.__dict__.update(copy.deepcopy({**state, "_stays_dense_because": None}))
    shell.__dict__["_parameters"] = dict.fromkeys(layer._parameters)
    shell.__dict__.pop("_stays_dense_because")
    return shell


def filled(shell: nn.Module, weight: Tensor, trained: bool, bias: nn.Parameter | None, training: bool) -> nn.Module:
    """The layer that `shell_of` emptied, with a weight and a bias."""
    layer = copy.deepcopy(shell)
    weight = weight.clone(memory_format=torch.contiguous_format)  # all of its storage: safetensors asks for that
    layer.weight = nn.Parameter(weight, trained)
    layer.bias = bias
    return layer.train(training)
