"""SNFS: grow, and share out over layers, by the momentum of the dense gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.no_sync import read
from spfde.topology.methods.exchanging import Exchanging
from spfde.topology.moves import highest
from spfde.topology.schedule import Cosine
from spfde.topology.watch import finite_gradients


class SNFS(Exchanging):
    """Drops the smallest |w|, shares what was freed out over the layers and grows by momentum magnitude.

    m <- beta m + (1 - beta) dL/dw of the dense weight, every step. A layer's share is proportional to the mean |m| of
    its stored weights; in it the missing weights with the largest |m| grow. The moved share falls as a cosine to 0 at
    the end of the training. Source: sparse networks from scratch (1907.04840): share 0.5, once an epoch.

    Cost: its definition needs the dense gradient of every step, about what a dense weight gradient costs, and a float32
    buffer as large as the dense weights. `accumulate_every` = k takes only every k-th step into m, a k-th of that time.

    beta: in [0, 1). accumulate_every: optimizer steps. The rest: see Exchanging and Topology.

    Raises:
        ValueError: see Exchanging; or beta or accumulate_every is out of range.
    """

    default_drop = 0.5

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
        headroom: float = 2.0,
        beta: float = 0.9,
        accumulate_every: int = 1,
    ) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"expected beta in [0, 1), got {beta}")
        if accumulate_every < 1:
            raise ValueError(f"expected accumulate_every >= 1 (optimizer steps), got {accumulate_every}")
        self.beta, self.accumulate_every = beta, accumulate_every
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed,
            headroom=headroom,
        )  # fmt: skip
        self.schedule = Cosine(self.schedule(0), total_steps)
        self.momentum = {
            name: layer.values.new_zeros(layer.grid.size, *layer.grid.block) for name, layer in self.layers.items()
        }

    def _prepare(self) -> None:
        if (self._step + 1) % self.accumulate_every == 0:
            self.arm()

    @torch.no_grad()
    def _every_step(self) -> None:
        if not self.armed or not finite_gradients(self.optimizer):
            return
        for name in self._watch.seen(self._live()):
            probe, momentum = self._watch.probes[name], self.momentum[name]
            probe.multiply()
            scale = probe.scale()
            for first, blocks in probe.slabs():
                momentum[first : first + len(blocks)].lerp_(scale * blocks.to(momentum.dtype), 1 - self.beta)

    def _pull(self, live: Mapping[str, SparseLayer], kept: Mapping[str, int]) -> dict[str, float]:
        some = {name: layer for name, layer in live.items() if layer.nnz}
        means = read([self.momentum[name][layer.positions()].abs().mean() for name, layer in some.items()])
        return dict.fromkeys(live, 0.0) | dict(zip(some, means, strict=True))

    def _grow(self, name: str, layer: SparseLayer, kept: Tensor, need: Tensor, group: Tensor) -> Tensor:
        return highest([(0, self.momentum[name].abs().sum((1, 2)))], group, kept, need)[0]

    def _own_state(self) -> dict[str, Any]:
        return {"momentum": {name: momentum.clone() for name, momentum in self.momentum.items()}}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        for name, momentum in state["momentum"].items():
            self.momentum[name].copy_(momentum)
