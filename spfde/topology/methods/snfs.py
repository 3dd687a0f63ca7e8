"""SNFS: grow, and share out over layers, by the momentum of the dense gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spfde.sparse.no_sync import to_host
from spfde.topology.layers import LayerState
from spfde.topology.methods.redistribution import Redistribution
from spfde.topology.moves import highest
from spfde.topology.options import option
from spfde.topology.probes import finite_gradients
from spfde.topology.schedule import cosine


class SNFS(Redistribution):
    """Drops the smallest |w|, shares what was freed out over the layers and grows by momentum magnitude.

    m <- beta m + (1 - beta) dL/dw of the dense weight, every step. A layer's share is proportional to the mean |m| of
    its stored weights; in it the missing weights with the largest |m| grow. The moved share falls as a cosine to 0 at
    the end of the training. Source: sparse networks from scratch (1907.04840): share 0.5, once an epoch.

    Cost: its definition needs the dense gradient of every step, about what a dense weight gradient costs, and a float32
    buffer as large as the dense weights. `accumulate_every` = k takes only every k-th step into m, a k-th of that time.
    """

    default_drop = 0.5
    beta: float = option(0.9, "[0, 1)", "how much of the momentum a step keeps")
    accumulate_every: int = option(1, "[1, inf)", "optimizer steps between those whose gradient the momentum takes")

    def setup(self) -> None:
        super().setup()
        self.momentum = {
            name: layer.values.new_zeros(layer.grid.size, *layer.grid.block) for name, layer in self.layers.items()
        }

    def watches(self, step: int) -> bool:
        return step % self.accumulate_every == 0

    def drop_share(self, step: int) -> float:
        return cosine(step, self.drop_fraction, self.total_steps)

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.armed or not finite_gradients(self.optimizer, self._ranks):
            return
        for name in self._probes.seen(self.live()):
            probe, momentum = self._probes.of[name], self.momentum[name]
            probe.multiply()
            scale = probe.scale()
            for first, blocks in probe.slabs():
                momentum[first : first + len(blocks)].lerp_(scale * blocks.to(momentum.dtype), 1 - self.beta)

    def layer_weight(self, layers: Mapping[str, LayerState], held: Mapping[str, int]) -> dict[str, float]:
        some = {name: layer for name, layer in layers.items() if layer.nnz}
        means = to_host([self.momentum[name][layer.positions].abs().mean() for name, layer in some.items()])
        return dict.fromkeys(layers, 0.0) | dict(zip(some, means, strict=True))

    def grow(self, layer: LayerState, kept: Tensor, need: Tensor) -> Tensor:
        return highest([(0, self.momentum[layer.name].abs().sum((1, 2)))], layer.group, kept, need)[0]

    def own_state(self) -> dict[str, Any]:
        return {"momentum": {name: momentum.clone() for name, momentum in self.momentum.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name, momentum in state["momentum"].items():
            self.momentum[name].copy_(momentum)
