"""AutoFreeze: front blocks freeze whose gradients change least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share, check_whole
from spfde.freezing.freezer import Freezer, Verdict


class AutoFreeze(Freezer):
    """Freezes the front blocks whose gradients changed less than a percentile of all active blocks' did.

    Gradients are added up over windows of steps. The rate of change of a block is |before - now| / before, of the L1
    norms of the sums over the last two windows. At a boundary all blocks in front of the first whose rate is not below
    the percentile freeze. Every decision takes two windows of its own, since the last one and since the masks moved.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        interval: epochs between two boundaries at which it decides.
        fraction: share of the blocks that may freeze, in (0, 1].
        window: steps over which gradients are added up.
        percentile: of the active blocks' rates, as a fraction in (0, 1), below which a block freezes.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range, or as `Freezer`.

    Source: Liu et al. (2021), "AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning".
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        interval: int = 1,
        fraction: float = 2 / 3,
        window: int = 50,
        percentile: float = 0.5,
    ) -> None:
        check_whole("window", window, 1)
        check_share("percentile", percentile, "(0, 1)", 0.5)
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        self.window, self.percentile = window, percentile
        self._parameters = {block.name: [p for p in block.trainable if p.requires_grad] for block in self.blocks}
        self._sums: dict[str, list[Tensor]] = {}  # of the gradients of each active block in this window
        self._steps_in = 0  # steps in this window
        self._norms: dict[str, list[float]] = {}  # of the last two windows

    def _note(self, inputs: Any, lr: float | None) -> None:
        for name in (block.name for block in self.blocks[len(self._frozen) :]):
            parameters = self._parameters[name]
            sums = self._sums.setdefault(name, [torch.zeros_like(p) for p in parameters])
            given = [(own, p.grad) for own, p in zip(sums, parameters, strict=True) if p.grad is not None]
            if given:
                torch._foreach_add_(*map(list, zip(*given, strict=True)))
        self._steps_in += 1
        if self._steps_in == self.window:
            for name, sums in self._sums.items():
                self._norms[name] = [*self._norms.get(name, []), float(sum(each.abs().sum() for each in sums))][-2:]
            self._sums, self._steps_in = {}, 0

    @property
    def rates(self) -> dict[str, float]:
        """The rates of change that the next decision goes by, of all active blocks; empty before two windows."""
        active = [block.name for block in self.blocks[len(self._frozen) :]]
        if any(len(self._norms.get(name, [])) < 2 for name in active):
            return {}
        return {name: _rate(*self._norms[name]) for name in active}

    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        rates = self.rates
        if not rates:
            seen = min((len(norms) for norms in self._norms.values()), default=0)
            return Verdict(False, f"{seen} of 2 windows of {self.window} steps")
        limit = float(np.quantile([*rates.values()], self.percentile))
        rate = rates[block.name]
        relation = "below" if rate < limit else "not below"
        place = f"the {self.percentile:.0%} percentile of the active blocks"
        return Verdict(rate < limit, f"its gradient's norm changed by {rate:.1%}, {relation} {limit:.1%}, {place}")

    def _decided(self) -> None:
        if self._norms and all(len(norms) == 2 for norms in self._norms.values()):
            self._norms = {}
        self._sums = {name: sums for name, sums in self._sums.items() if name not in self._frozen}

    def _restart(self) -> None:
        self._sums, self._steps_in, self._norms = {}, 0, {}

    def _own_state(self) -> dict[str, Any]:
        return {
            "sums": {name: [each.clone() for each in sums] for name, sums in self._sums.items()},
            "steps_in": self._steps_in,
            "norms": {name: list(norms) for name, norms in self._norms.items()},
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        norms = {name: list(each) for name, each in state["norms"].items()}
        sums = {
            name: [
                torch.zeros_like(p).copy_(own.view_as(p)) for own, p in zip(each, self._parameters[name], strict=True)
            ]
            for name, each in state["sums"].items()
        }
        self._sums, self._steps_in, self._norms = sums, state["steps_in"], norms


def _rate(before: float, now: float) -> float:
    if before:
        return abs(before - now) / before
    return math.inf if now else 0.0
