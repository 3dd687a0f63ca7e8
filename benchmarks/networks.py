"""Whole networks to train a step of: the zoo at the inputs that speed is judged at, dense and sparse.

On a CPU a step alone is timed (step.py); on a GPU, in bfloat16 autocast, also one with the front half frozen, and the
forward pass of a frozen network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spfde
from spfde.kernels import triton
from spfde.nn import SparseLayer

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
        if self.model == "vit":  # as wide as ViT-L, a quarter of its depth
            return spfde.models.ViT(1024, 6, 16)
        return spfde.models.create(self.model, **self.options)

    def data(self) -> tuple[Tensor, Tensor]:
        """Random input and targets, always the same."""
        generator = torch.Generator().manual_seed(1)
        if self.model != "vit" and "context" in spfde.models.options(self.model):
            tokens = torch.randint(10, (2, self.batch, self.size), generator=generator)
            return tokens[0], tokens[1]
        images = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return images, torch.randint(10, (self.batch,), generator=generator)

    def variant(self, how: str | Sparse) -> tuple[nn.Module, Callable[[], None]]:
        """The network in one of the DENSE variants, or sparse and fused, and its training step.

        Raises:
            ValueError: spfde.sparsify refuses the pattern.
        """
        model, x, y = self.parts(how)
        run = torch.compile(model, fullgraph=True, dynamic=False) if how == "compiled" else model
        return model, training_step(run, x, y, optimizer_of(model))

    def parts(self, how: str | Sparse) -> tuple[nn.Module, Tensor, Tensor]:
        """The network as `how` says (not compiled yet), its input and its targets."""
        model, (x, y) = self.make(), self.data()
        if isinstance(how, Sparse):
            model = spfde.fuse(spfde.sparsify(model, how.sparsity, pattern=how.pattern), recompute=how.recompute)
        elif how == "channels_last":
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

# Speed-up over the best dense variant that a step is to reach.
TARGETS: Mapping[tuple[str, Sparse], float] = {
    **{(name, Sparse("unstructured", 0.5)): 1.0 for name in NETWORKS},
    **{(name, Sparse("unstructured", 0.9)): 2.5 for name in ("resnet32", "resnet32-w2", "resnet50")},
    **{(name, Sparse("unstructured", 0.95)): 3.2 for name in ("resnet32", "resnet32-w2")},
    **{(name, Sparse("block:4x1", 0.9)): 3.0 for name in ("resnet32", "resnet32-w2")},
    ("vgg19_bn", Sparse("unstructured", 0.9)): 3.5,
    ("vit_tiny", Sparse("unstructured", 0.9)): 2.0,
}
MEMORY_CASE, MEMORY_TARGET = Sparse("unstructured", 0.9, recompute=True), 0.75  # share of the best dense peak


def cases(name: str, sparsities: list[float]) -> list[Sparse]:
    """What is timed of a network at these sparsities: unstructured at each, and what else has a target."""
    extra = [MEMORY_CASE, *(case for network, case in TARGETS if network == name and case.pattern != "unstructured")]
    return [*(Sparse("unstructured", s) for s in sparsities), *(case for case in extra if case.sparsity in sparsities)]


# ---- on a GPU --------------------------------------------------------------------------------------------------------

PARTS = ("step", "half frozen step", "frozen forward")


def variants() -> tuple[str, ...]:
    """What is timed: every layer by Triton, or where it is missing in CUDA C++, fused or not, and the rest."""
    ours = "triton" if triton.available() else "cuda"
    return ours, f"{ours} unfused", "auto", "dense channels_last"


@dataclass(frozen=True)
class NetworkCase:
    """A network in bfloat16 autocast, sparse and fused."""

    network: Network
    how: Sparse

    def __str__(self) -> str:
        return f"{self.network.model} b{self.network.batch} autocast {self.how}"


def gpu_networks() -> list[NetworkCase]:
    """The networks timed on a GPU."""
    resnet, vit = (Network(name, batch=64, size=224) for name in ("resnet50", "vit"))
    return [NetworkCase(n, Sparse("block:64x64", s)) for n, s in ((resnet, 0.8), (vit, 0.9), (vit, 0.8))]


@dataclass(frozen=True)
class Pair:
    """The dense network, and the same one sparse and fused, both on the CPU; images and classes on the device.

    front: names of the modules and parameters that freezing the first half of the blocks makes constant.
    """

    dense: nn.Module
    sparse: nn.Module
    x: Tensor
    y: Tensor
    front: Sequence[str]


def pair(case: NetworkCase, device: str = "cuda") -> Pair:
    """The same random data whenever a case is run."""
    dense, (x, y) = case.network.make(), case.network.data()
    blocks = spfde.freezing.blocks(dense, x[:1])
    front = [name for block in blocks[: len(blocks) // 2] for name, _ in (*block.modules, *block.parameters)]
    sparse = spfde.fuse(spfde.sparsify(deepcopy(dense), case.how.sparsity, pattern=case.how.pattern))
    return Pair(dense, sparse, x.to(device).contiguous(memory_format=torch.channels_last), y.to(device), front)


def calls(given: Pair, name: str) -> dict[str, Callable[[], Tensor]]:
    """What to time of one of `variants`, by part; all have run once.

    Raises:
        ValueError: a result is not finite.
    """

    def model() -> nn.Module:
        made = deepcopy(given.dense if name.startswith("dense") else given.sparse)
        if name.endswith(" unfused"):
            spfde.unfuse(made)
        for layer in made.modules():
            if isinstance(layer, SparseLayer) and name.startswith(("triton", "cuda")):
                layer.kernel = name.split()[0]
        return made.to(given.x.device, memory_format=torch.channels_last)

    half, whole = model(), spfde.freezing.freeze(model())
    for each in given.front:
        _freeze(half, each)
    made = (_step(model(), given), _step(half, given), lambda: _autocast(whole, given.x))
    parts = dict(zip(PARTS, made, strict=True))
    for part, call in parts.items():
        if not bool(call().isfinite().all()):
            raise ValueError(f"expected a finite result of the {part}, got others")
    return parts


def chosen(given: Pair) -> str:
    """What kernel = "auto" came to."""
    model = deepcopy(given.sparse).to(given.x.device)
    with torch.no_grad():
        _autocast(model, given.x)
    rows = [row for row in spfde.summary(model).rows if row.converted]
    return f"{sum(row.runs_sparse for row in rows)} of {len(rows)} sparse layers run a sparse kernel"


def _freeze(model: nn.Module, name: str) -> None:
    parameter = dict(model.named_parameters()).get(name)
    if parameter is None:
        spfde.freezing.freeze(model.get_submodule(name))
    else:
        parameter.requires_grad_(False)


def _autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


def _step(model: nn.Module, given: Pair) -> Callable[[], Tensor]:
    optimizer = optimizer_of(model)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(_autocast(model, given.x).float(), given.y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
