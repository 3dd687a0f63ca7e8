"""What a user writes, for mypy and pyright: the types of everything public are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import spfde
from spfde.nn import SparseConv2d, SparseLinear
from spfde.train import Recipe, Result, fit

model: nn.Module = spfde.sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), 0.5, distribution="erk")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
topology = spfde.topology.RigL(model, optimizer, total_steps=10, every=5, end=0.5)
parts: Sequence[spfde.freezing.FreezeBlock] = spfde.freezing.blocks(model, torch.randn(2, 8))
freezer = spfde.freezing.Progressive(model, parts, epochs=10, interval=2, flops_reduction=0.1)
names: list[str] = freezer.begin_epoch(0)
sieve = spfde.sieving.Circular(64, fraction=0.25, interval=1)
moved: bool = topology.step()
weights: Tensor | None = sieve.observe(torch.arange(4), torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
layer = SparseLinear(16, 8, sparsity=0.75)
mask: Tensor = layer.mask()
conv = SparseConv2d.from_dense(nn.Conv2d(3, 8, 3))
count: int = conv.nnz
kernel: str = layer.kernel
dense: nn.Module = spfde.densify(model)
result: Result = fit(Recipe(epochs=1, sparsity=0.5))
accuracy: float = result.test_accuracy
ema = spfde.integrations.EMA(model, topology, decay=0.9)
average: nn.Module = ema.module
