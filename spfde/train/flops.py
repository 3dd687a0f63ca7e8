"""Training FLOPs as the layers really are: stored weights, frozen prefix, gradients that nobody needs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from spfde._modules import eval_mode, run, tensors
from spfde.flops import layer_work


def gradients(model: nn.Module, names: Iterable[str], example: Any) -> dict[str, int]:
    """Count the gradients that a training step computes in each named layer: of its weight, of its input.

    Read from a forward pass of `example` [n, ...] with autograd on: a frozen layer has no weight gradient, a
    layer whose input does not require grad (the first one, or what reads a frozen prefix) no input gradient.
    Modes and BatchNorm statistics stay as they are.
    """
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        weight = any(p.requires_grad and p.ndim > 1 for p in module.parameters(recurse=False))
        needed = any(tensor.requires_grad for tensor in tensors(output))
        counts[name] = int(weight) + int(any(tensor.requires_grad for tensor in tensors(inputs))) if needed else 0

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(partial(count, name)) for name in names]
    try:
        with eval_mode(model), torch.enable_grad():
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name in set(names) - counts.keys():  # its parent multiplies by its weight
        counts[name] = 1 + int(any(p.requires_grad for p in modules[name].parameters(recurse=False)))
    return counts


def training_flops(model: nn.Module, example: Any) -> float:
    """Count the FLOPs of one sample in training, over weighted layers: forward * (1 + gradients computed).

    2 FLOPs per multiply-add; each gradient costs what the forward does; weights count where they are stored.
    """
    work = layer_work(model, example)
    computed = gradients(model, work, example)
    return float(sum(layer.forward * (1 + computed[name]) for name, layer in work.items()))
