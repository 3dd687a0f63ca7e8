"""What SmartFRZ looks at: a window of snapshots of weights sampled from one layer ("layer tailoring")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spfde.flops import LOOKUPS
from spfde.freezing.block import FreezeBlock
from spfde.nn import SparseLayer
from spfde.nn.weighted import weighted

SNAPSHOTS, SAMPLES = 30, 1024  # the paper's window and number of sampled weights


def sampled_layers(block: FreezeBlock) -> list[tuple[str, nn.Module]]:
    """The layers of a block that have a say in whether it freezes, by qualified name: all that multiply by a weight."""
    return [
        (f"{name}.{entry.name}".rstrip("."), entry.module)
        for name, module in block.modules
        for entry in weighted(module)
        if entry.is_layer and not isinstance(entry.module, LOOKUPS) and entry.module not in block.active
    ]


def stored_values(module: nn.Module) -> Tensor:
    """The weights of a layer that are stored, flat [n], without a copy, detached: in no particular order."""
    if isinstance(module, SparseLayer):
        return module.values.detach()[: module.nnz].view(-1)
    weight = next(p for p in module.parameters() if p.dim() > 1).detach()
    return weight.as_strided((weight.numel(),), (1,))  # whatever its memory format


class History:
    """The snapshots of one layer since its window began: the same weights each time, sampled when it begins.

    Snapshots are spread evenly over the `span` steps of a window, one at each step where these are fewer. A layer with
    fewer than SAMPLES stored weights is sampled with repetition.

    Args:
        module: the layer, dense or sparse.
        key: non-negative numbers that the sampling is a function of, the window's number added.
        span: steps of the first window.
    """

    def __init__(self, module: nn.Module, key: tuple[int, ...], span: int = SNAPSHOTS) -> None:
        self.module, self.key, self.span = module, key, span
        self.number = self.steps = self.taken = 0
        self._rows = self._sample = torch.empty(0)

    @property
    def complete(self) -> bool:
        """Whether the window is full: nothing is taken then until the next one begins."""
        return self.taken == SNAPSHOTS

    @property
    def window(self) -> Tensor:
        """The snapshots so far, oldest first, float32 [taken, SAMPLES]."""
        return self._rows[: self.taken]

    def begin(self, span: int) -> None:
        """Begins a window of `span` steps, unless one is under way."""
        if self.complete or not self.taken:
            self._restart(span)

    def cut(self) -> None:
        """Begins anew as the mask has moved: if that was too early, with a window as short as the masks stood still."""
        self._restart(self.span if self.complete else min(self.span, self.steps or self.span))

    @torch.no_grad()
    def observe(self) -> None:
        """Looks at the layer, once a step."""
        weights = stored_values(self.module)
        if self.complete or not len(weights):
            return
        self.steps += 1
        if self.span > SNAPSHOTS and self.steps * SNAPSHOTS // self.span == (self.steps - 1) * SNAPSHOTS // self.span:
            return
        if not self.taken:
            self._sample = torch.from_numpy(_draw(len(weights), (*self.key, self.number))).to(weights.device)
            self._rows = torch.empty(SNAPSHOTS, SAMPLES, device=weights.device)
        self._rows[self.taken].copy_(weights.index_select(0, self._sample))
        self.taken += 1

    def _restart(self, span: int) -> None:
        self.span, self.number, self.steps, self.taken = span, self.number + 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        kept = {name: getattr(self, name) for name in ("span", "number", "steps")}
        return {**kept, "window": self.window.cpu().clone(), "sample": self._sample.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values, on the device where the layer is."""
        span, number, steps, window, sample = (state[n] for n in ("span", "number", "steps", "window", "sample"))
        device = stored_values(self.module).device
        self.span, self.number, self.steps, self.taken = span, number, steps, len(window)
        self._rows = torch.empty(SNAPSHOTS, SAMPLES, device=device)
        self._rows[: self.taken] = window.to(device)
        self._sample = sample.to(device, copy=True)


def _draw(stored: int, key: tuple[int, ...]) -> np.ndarray:
    """SAMPLES of `stored` places, ascending: without repetition where there are enough."""
    random = np.random.default_rng(key)
    if stored < SAMPLES:
        return np.sort(np.resize(random.permutation(stored), SAMPLES))
    return np.sort(random.choice(stored, SAMPLES, replace=False, shuffle=False))
