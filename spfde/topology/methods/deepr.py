"""DeepR: a random walk with fixed signs; a weight that crosses zero makes place for another."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from spfde.sparse.index import permute
from spfde.sparse.no_sync import nonzero_all
from spfde.topology.layers import LayerState
from spfde.topology.methods.redistribution import Redistribution
from spfde.topology.moves import share
from spfde.topology.options import option


class DeepR(Redistribution):
    """Every stored weight has a sign; w <- w - lr l1 sign + sqrt(2 lr T) noise after every step; wrong signs go.

    As many weights as were dropped come at random, each missing weight of the model equally likely, with a random sign
    and value 0. lr is the optimizer's for these weights. Source: deep rewiring (1711.05136), which rewires at every
    step: that is the default here, and an update costs a new index, so every > 1 is faster; a weight with the wrong
    sign then lives until the next update. Single weights only.
    """

    default_every = 1
    default_drop = None
    reset_regrown = True
    keeps_frozen = False  # its noise moves every stored weight
    refused = ("n:m", "block", "channel")
    l1: float = option(1e-4, "[0, inf)", "pull towards 0")
    temperature: float | None = option(
        None, "[0, inf)", "T of the noise; None is lr l1^2 / 18, noise a third as strong as the pull"
    )

    def setup(self) -> None:
        super().setup()
        self.signs = {name: torch.zeros_like(layer.values.detach()) for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            sign = layer.values.detach()[: layer.nnz].sign()
            self.signs[name][: layer.nnz] = torch.where(sign == 0, self._random_signs(sign), sign)

    @torch.no_grad()
    def after_step(self) -> None:
        rates = {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        for name, layer in self.live().items():
            lr, live = rates[id(layer.values)], layer.values[: layer.nnz]
            temperature = lr * self.l1**2 / 18 if self.temperature is None else self.temperature
            noise = torch.randn(live.shape, generator=self.generator).to(live, non_blocking=True)
            live += sqrt(2 * lr * temperature) * noise - lr * self.l1 * self.signs[name][: layer.nnz]

    def keep_all(self, layers: Mapping[str, LayerState], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signed = {name: layer.module.values.detach() * self.signs[name] for name, layer in layers.items()}
        return nonzero_all({name: (signed[name][: layer.nnz] >= 0).view(-1) for name, layer in layers.items()})

    def allocate(
        self, freed: int, layers: Mapping[str, LayerState], held: Mapping[str, int], limit: Mapping[str, int]
    ) -> dict[str, int]:
        names = list(layers)
        ends = torch.tensor([layers[name].grid.size - held[name] for name in names]).cumsum(0)
        if not freed:
            return dict.fromkeys(names, 0)
        drawn = torch.randint(int(ends[-1]), (freed,), generator=self.generator)
        hits = torch.bincount(torch.searchsorted(ends, drawn, right=True), minlength=len(names)).tolist()
        given = {name: min(hit, limit[name]) for name, hit in zip(names, hits, strict=True)}
        rest = {name: limit[name] - given[name] for name in names}
        for name, more in share(freed - sum(given.values()), {n: float(r) for n, r in rest.items()}, rest).items():
            given[name] += more
        return given

    def slots_moved(self, layer: LayerState, source: Tensor) -> None:
        signs, live = self.signs[layer.name], layer.module.nnz
        permute(signs, source)
        new = source[:live] < 0
        signs[:live][new] = self._random_signs(signs[:live][new])

    def _random_signs(self, like: Tensor) -> Tensor:
        return (2 * torch.randint(2, like.shape, generator=self.generator) - 1).to(like)

    def own_state(self) -> dict[str, Any]:
        return {"signs": {name: signs.clone() for name, signs in self.signs.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name, signs in state["signs"].items():
            self.signs[name].copy_(signs)
