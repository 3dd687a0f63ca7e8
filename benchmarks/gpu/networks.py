"""Whole networks on a GPU: a training step, one with the front half frozen, and the forward of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from gpu.cases import Network
from networks import loss_of, optimizer_of
from torch import Tensor, nn

import spfde
from spfde.nn import SparseLayer

MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: spfde.models.create("resnet50"),
    "vit": lambda: spfde.models.ViT(1024, 6, 16),  # as wide as ViT-L, a quarter of its depth
}
PIXELS = 224


@dataclass(frozen=True)
class Problem:
    """The dense network, and the same one sparse and fused, both on the CPU; images and classes on the device.

    front: names of the modules and parameters that freezing the first half of the blocks makes constant.
    """

    case: Network
    dense: nn.Module
    sparse: nn.Module
    x: Tensor
    classes: Tensor
    front: Sequence[str]


def problem(case: Network, device: str = "cuda") -> Problem:
    """The same random data whenever a case is run."""
    torch.manual_seed(0)
    dense = MODELS[case.model]()
    x = torch.randn(case.batch, 3, PIXELS, PIXELS)
    blocks = spfde.freezing.blocks(dense, x[:1])
    front = [name for block in blocks[: len(blocks) // 2] for name, _ in (*block.modules, *block.parameters)]
    pattern = f"block:{case.block}x{case.block}"
    sparse = spfde.fuse(spfde.sparsify(deepcopy(dense), 1 - case.density, pattern=pattern))
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    return Problem(case, dense, sparse, x, torch.randint(10, (case.batch,), device=device), front)


def calls(given: Problem, way: str) -> Mapping[str, Callable[[], Tensor]]:
    """What to time of a way, by part; all have run once.

    Raises:
        ValueError: a result is not finite.
    """

    def model() -> nn.Module:
        made = deepcopy(given.dense if way == "dense" else given.sparse)
        if way == "spfde unfused":
            spfde.unfuse(made)
        if way in ("spfde", "spfde unfused"):
            for layer in made.modules():
                if isinstance(layer, SparseLayer):
                    layer.kernel = "triton"
        return made.to(given.x.device, memory_format=torch.channels_last)

    half, whole = model(), spfde.freezing.freeze(model())
    for name in given.front:
        _freeze(half, name)
    parts = {
        "step": _step(model(), given),
        "half frozen step": _step(half, given),
        "frozen forward": lambda: _run(whole, given.x),
    }
    for part, call in parts.items():
        if not bool(call().isfinite().all()):
            raise ValueError(f"expected a finite result of the {part}, got others")
    return parts


def chosen(given: Problem) -> tuple[str, str]:
    """The way of kernel = "auto", and what it came to."""
    model = deepcopy(given.sparse).to(given.x.device)
    with torch.no_grad():
        _run(model, given.x)
    rows = [row for row in spfde.summary(model).rows if row.converted]
    return "spfde auto", f"{sum(row.runs_sparse for row in rows)} of {len(rows)} sparse layers run a sparse kernel"


def _freeze(model: nn.Module, name: str) -> None:
    parameter = dict(model.named_parameters()).get(name)
    if parameter is None:
        spfde.freezing.freeze(model.get_submodule(name))
    else:
        parameter.requires_grad_(False)


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


def _step(model: nn.Module, given: Problem) -> Callable[[], Tensor]:
    optimizer = optimizer_of(model)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(_run(model, given.x).float(), given.classes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
