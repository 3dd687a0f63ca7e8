"""Whole networks to train a step of: the zoo at the inputs that speed is judged at, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spfde

DENSE = ("contiguous", "channels_last", "compiled")
EAGER = DENSE[:2]


@dataclass(frozen=True)
class Sparse:
    """How a network is made sparse."""

    pattern: str
    sparsity: float
    recompute: bool = False

    def __str__(self) -> str:
        return f"{self.pattern} {self.sparsity:.0%}{', recomputed' * self.recompute}"


@dataclass(frozen=True)
class Network:
    """A network of the zoo and its batch: images [batch, 3, size, size], or `size` tokens where it takes those."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 64
    size: int = 32

    def make(self) -> nn.Module:
        """The dense network in training mode, always with the same weights."""
        torch.manual_seed(0)
        return spfde.models.create(self.model, **self.options)

    def data(self) -> tuple[Tensor, Tensor]:
        """Random input and targets, always the same."""
        generator = torch.Generator().manual_seed(1)
        if "context" in spfde.models.options(self.model):
            tokens = torch.randint(10, (2, self.batch, self.size), generator=generator)
            return tokens[0], tokens[1]
        images = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return images, torch.randint(10, (self.batch,), generator=generator)

    def way(self, way: str | Sparse) -> tuple[nn.Module, Callable[[], None]]:
        """The network in one of the DENSE ways, or sparse and fused, and its training step.

        Raises:
            ValueError: spfde.sparsify refuses the pattern.
        """
        model, x, y = self.parts(way)
        run = torch.compile(model, fullgraph=True, dynamic=False) if way == "compiled" else model
        return model, training_step(run, x, y, optimizer_of(model))

    def parts(self, way: str | Sparse) -> tuple[nn.Module, Tensor, Tensor]:
        """The network as `way` has it (not compiled yet), its input and its targets."""
        model, (x, y) = self.make(), self.data()
        if isinstance(way, Sparse):
            model = spfde.fuse(spfde.sparsify(model, way.sparsity, pattern=way.pattern), recompute=way.recompute)
        elif way == "channels_last":
            model = model.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        return model, x, y


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum."""
    # A small rate: random targets have nothing to teach, and weights that blow up would time denormals or NaN.
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)


def loss_of(output: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, over all tokens where there are some."""
    return F.cross_entropy(output.flatten(0, -2), y.flatten())


def training_step(
    run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """Forward through `run`, cross entropy, backward, one step of the optimizer."""

    def step() -> None:
        optimizer.zero_grad()
        loss_of(run(x), y).backward()
        optimizer.step()

    return step


NETWORKS: Mapping[str, Network] = {
    "resnet32": Network("resnet32"),
    "resnet32-w2": Network("resnet32", {"width": 2}),
    "vgg19_bn": Network("vgg19_bn_cifar"),
    "resnet50": Network("resnet50", batch=16, size=64),
    "vit_tiny": Network("vit_tiny_cifar"),
    "resnet20": Network("resnet20"),
    "resnet18": Network("resnet18_cifar"),
    "mobilenet_v2": Network("mobilenet_v2_cifar"),
    "gpt_mini": Network("gpt_mini", batch=16, size=64),
}

# Speed-up over the best dense way that a step is to reach.
TARGETS: Mapping[tuple[str, Sparse], float] = {
    **{(name, Sparse("unstructured", 0.5)): 1.0 for name in NETWORKS},
    **{(name, Sparse("unstructured", 0.9)): 2.5 for name in ("resnet32", "resnet32-w2", "resnet50")},
    **{(name, Sparse("unstructured", 0.95)): 3.2 for name in ("resnet32", "resnet32-w2")},
    **{(name, Sparse("block:4x1", 0.9)): 3.0 for name in ("resnet32", "resnet32-w2")},
    ("vgg19_bn", Sparse("unstructured", 0.9)): 3.5,
    ("vit_tiny", Sparse("unstructured", 0.9)): 2.0,
}
MEMORY_CASE, MEMORY_TARGET = Sparse("unstructured", 0.9, recompute=True), 0.75  # share of the best dense way's peak


def cases(name: str, sparsities: list[float]) -> list[Sparse]:
    """What is timed of a network at these sparsities: unstructured at each, and what else has a target."""
    extra = [MEMORY_CASE, *(case for network, case in TARGETS if network == name and case.pattern != "unstructured")]
    return [*(Sparse("unstructured", s) for s in sparsities), *(case for case in extra if case.sparsity in sparsities)]
