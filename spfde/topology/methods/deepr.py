"""DeepR: a random walk with fixed signs; a weight that crosses zero makes place for another."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.nn.layer import permute
from spfde.sparse.no_sync import find_all
from spfde.topology.methods.exchanging import Exchanging
from spfde.topology.moves import share


class DeepR(Exchanging):
    """Every stored weight has a sign; w <- w - lr l1 sign + sqrt(2 lr T) noise after every step; wrong signs go.

    As many weights as were dropped come at random, each missing weight of the model equally likely, with a random sign
    and value 0. lr is the optimizer's for these weights. Source: deep rewiring (1711.05136), which rewires at every
    step: that is the default here, and an update costs a new index, so every > 1 is faster; a weight with the wrong
    sign then lives until the next update.

    l1: >= 0. temperature: T >= 0; None: lr l1^2 / 18, noise a third as strong as the pull of l1. Single weights only.
    The rest: see Exchanging and Topology.

    Raises:
        ValueError: see Exchanging; or l1 or temperature is negative.
    """

    default_drop = None
    forgets = True
    refused = ("n:m", "block", "channel")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 1,
        drop_fraction: float | None = None,
        seed: int = 0,
        headroom: float = 2.0,
        l1: float = 1e-4,
        temperature: float | None = None,
    ) -> None:
        if l1 < 0:
            raise ValueError(f"expected l1 >= 0, got {l1}")
        if temperature is not None and temperature < 0:
            raise ValueError(f"expected temperature >= 0, got {temperature}")
        self.l1, self.temperature = l1, temperature
        super().__init__(
            model, optimizer, total_steps=total_steps, every=every, drop_fraction=drop_fraction, seed=seed,
            headroom=headroom,
        )  # fmt: skip
        self.signs = {name: torch.zeros_like(layer.values.detach()) for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            sign = layer.values.detach()[: layer.nnz].sign()
            self.signs[name][: layer.nnz] = torch.where(sign == 0, self._random_signs(sign), sign)

    @torch.no_grad()
    def _every_step(self) -> None:
        rates = {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        for name, layer in self._live().items():
            lr, live = rates[id(layer.values)], layer.values[: layer.nnz]
            temperature = lr * self.l1**2 / 18 if self.temperature is None else self.temperature
            noise = torch.randn(live.shape, generator=self._generator).to(live, non_blocking=True)
            live += sqrt(2 * lr * temperature) * noise - lr * self.l1 * self.signs[name][: layer.nnz]

    def _all_stay(self, live: Mapping[str, SparseLayer], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return find_all({n: ((at.values.detach() * self.signs[n])[: at.nnz] >= 0).view(-1) for n, at in live.items()})

    def _given(
        self, freed: int, live: Mapping[str, SparseLayer], kept: Mapping[str, int], limit: Mapping[str, int]
    ) -> dict[str, int]:
        names = list(live)
        ends = torch.tensor([live[name].grid.size - kept[name] for name in names]).cumsum(0)
        if not freed:
            return dict.fromkeys(names, 0)
        drawn = torch.randint(int(ends[-1]), (freed,), generator=self._generator)
        hits = torch.bincount(torch.searchsorted(ends, drawn, right=True), minlength=len(names)).tolist()
        given = {name: min(hit, limit[name]) for name, hit in zip(names, hits, strict=True)}
        rest = {name: limit[name] - given[name] for name in names}
        for name, more in share(freed - sum(given.values()), {n: float(r) for n, r in rest.items()}, rest).items():
            given[name] += more
        return given

    def _moved(self, name: str, layer: SparseLayer, source: Tensor) -> None:
        signs = self.signs[name]
        permute(signs, source)
        new = source[: layer.nnz] < 0
        signs[: layer.nnz][new] = self._random_signs(signs[: layer.nnz][new])

    def _random_signs(self, like: Tensor) -> Tensor:
        return (2 * torch.randint(2, like.shape, generator=self._generator) - 1).to(like)

    def _own_state(self) -> dict[str, Any]:
        return {"signs": {name: signs.clone() for name, signs in self.signs.items()}}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        for name, signs in state["signs"].items():
            self.signs[name].copy_(signs)
