"""The networks under test by name, an input for them, and what is fused in them."""

from __future__ import annotations

import torch
from fusing import models
from torch import nn

import spfde
from spfde.nn import SparseLayer

ZOO = {
    "resnet20": lambda: spfde.models.create("resnet20", width=0.5),
    "resnet20 with convolved shortcuts": lambda: spfde.models.create("resnet20", width=0.5, shortcut="B"),
}
NETWORKS = models.ALL | ZOO


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def chains(model: nn.Module) -> dict[str, str]:
    return {row.name: row.chain for row in spfde.fuse.report(model).rows}


def sparse(model: nn.Module) -> nn.Module:
    """Every layer but the stem sparse, computed by the native kernels."""
    names = {n: 0.5 for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[1] > 3}
    model = spfde.sparsify(model, distribution=names)
    for m in model.modules():
        if isinstance(m, SparseLayer):
            m.kernel = "native"
    return model
