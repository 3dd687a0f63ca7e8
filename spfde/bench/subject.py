"""What is timed: a layer on an input, or a network on a batch, and the variants and parts of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import eval_mode, run, tensors
from spfde.bench.workload import Workload
from spfde.convert.sparsify import sparsify
from spfde.flops import layer_work
from spfde.fusing import fuse
from spfde.nn import SparseLayer
from spfde.tuning.layer import DTYPES

NUMBER = r"([1-9]\d*)"
CONV = rf"{NUMBER}x{NUMBER}x{NUMBER}x{NUMBER}@{NUMBER}(?:/{NUMBER})?(?: ?g{NUMBER})?"


@dataclass(frozen=True)
class Layer:
    """A dense layer and the shape of its input. of: the network that has it, so many times (count)."""

    module: nn.Linear | nn.Conv2d
    shape: tuple[int, ...]
    of: str = ""
    count: int = 1

    kind = "layer"

    def __str__(self) -> str:
        weight = "x".join(map(str, self.module.weight.shape))
        if isinstance(self.module, nn.Linear):
            return f"linear {weight} on {'x'.join(map(str, self.shape[:-1]))}"
        stride, groups = self.module.stride[0], self.module.groups
        marks = f"{f'/{stride}' if stride > 1 else ''}{f' g{groups}' if groups > 1 else ''}"
        size = "x".join(map(str, self.shape[2:])) if self.shape[2] != self.shape[3] else str(self.shape[2])
        return f"conv {weight}@{size}{marks} on {self.shape[0]}"

    @cached_property
    def flops(self) -> Mapping[str, int]:
        """Dense FLOPs of its parts."""
        with torch.no_grad():
            outputs = self.module(torch.empty(self.shape)).numel()
        forward = 2 * outputs * self.module.weight[0].numel()
        return {"forward": forward, "input_grad": forward, "weight_grad": forward, "step": 3 * forward}

    def dense(self, device: str, dtype: str) -> nn.Module:
        """A copy of the layer."""
        return deepcopy(self.module).to(device, DTYPES[dtype])

    def sparse(self, sparsity: float, pattern: str, device: str, dtype: str) -> SparseLayer:
        """The layer with so many of its weights at zero, at random places."""
        return sparsify(self.dense(device, dtype), sparsity, pattern=pattern)

    def input(self, device: str, dtype: str) -> Tensor:
        """Random, always the same."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(1))
        return x.to(device, DTYPES[dtype])


@dataclass(frozen=True)
class Network:
    """A network on a batch. fused, distribution: how it is made sparse."""

    load: Workload
    fused: bool = True
    distribution: str = "uniform"

    kind, of, count = "network", "", 1

    def __str__(self) -> str:
        return f"{self.load.name} on {self.load.batch}"

    @cached_property
    def flops(self) -> Mapping[str, int]:
        """Dense FLOPs of its parts."""
        work = layer_work(self.load.model, self.load.inputs).values()
        forward, backward = (self.load.batch * sum(getattr(w, part) for w in work) for part in ("forward", "backward"))
        return {"forward": forward, "backward": backward, "step": forward + backward, "frozen": forward + backward}

    def sparse(self, sparsity: float, pattern: str) -> nn.Module:
        """A sparse copy of the network."""
        model = sparsify(deepcopy(self.load.model), sparsity, pattern=pattern, distribution=self.distribution)
        return fuse(model) if self.fused else model


def linear(text: str, batch: int) -> Layer:
    """The layer that "4096x1024" names, outputs first, on so many rows.

    Raises:
        ValueError: it names none.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"expected --linear OUTxIN, got {text!r}, try 1024x1024")
    rows, cols = map(int, text.split("x"))
    return _seeded(lambda: Layer(nn.Linear(cols, rows), (batch, cols)))


def conv(text: str, batch: int) -> Layer:
    """The layer that "64x64x3x3@32/2 g2" names: outputs, inputs of a group, kernel, size of the images, stride, groups.

    Padded by half of the kernel. Raises:
        ValueError: it names none, or the groups do not divide the outputs.
    """
    found = re.fullmatch(CONV, text)
    if found is None:
        raise ValueError(f"expected --conv OUTxINxKHxKW@SIZE[/STRIDE][gGROUPS], got {text!r}, try 64x64x3x3@32")
    rows, cols, height, width, size = map(int, found.groups()[:5])
    stride, groups = (int(each or 1) for each in found.groups()[5:])
    if rows % groups:
        raise ValueError(f"expected outputs that {groups} groups divide, got {rows} in --conv {text}")
    padding = (height // 2, width // 2)
    made = lambda: nn.Conv2d(cols * groups, rows, (height, width), stride, padding, groups=groups)  # noqa: E731
    return _seeded(lambda: Layer(made(), (batch, cols * groups, size, size)))


def layers_of(load: Workload) -> list[Layer]:
    """The different layers of a network that `spfde.sparsify` converts, each with how often the network has it."""
    converted = sparsify(deepcopy(load.model), 0.5)
    names = {name for name, m in converted.named_modules() if isinstance(m, SparseLayer)}
    found: dict[tuple[Any, ...], Layer] = {}

    def see(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        shape = tuple(next(tensors(args)).shape)
        how = () if isinstance(module, nn.Linear) else (module.stride, module.padding, module.dilation, module.groups)
        key = (tuple(module.weight.shape), shape, *how)
        before = found.get(key)
        found[key] = replace(before, count=before.count + 1) if before else Layer(module, shape, load.name)

    modules = [m for name, m in load.model.named_modules() if name in names and type(m) in (nn.Linear, nn.Conv2d)]
    hooks = [module.register_forward_hook(see) for module in modules]
    try:
        with torch.no_grad(), eval_mode(load.model):
            run(load.model, load.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _seeded(make: Callable[[], Layer]) -> Layer:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return make()
