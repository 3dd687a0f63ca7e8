"""Egeria: a block freezes once it no longer moves away from a reference copy of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spfde.analysis import similarities
from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_above, check_whole
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.probe import FEWEST, Probe
from spfde.levers import Run


class Egeria(Freezer):
    """Freezes the front block once its plasticity has levelled off, and gives all back when the learning rate drops.

    Plasticity is the similarity-preserving loss between what the block makes of a few fixed samples and what it made of
    them in the reference, the network as it was when the window of comparisons began. The block is ready when a line
    through the last `window` values changes by less than `tolerance` of their mean from end to end. The reference is
    taken anew after 3 windows without that, when a block freezes, and when masks have moved.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        interval: epochs between two boundaries at which it decides.
        fraction: share of the blocks that may freeze, in (0, 1].
        every: steps between two comparisons.
        window: comparisons that a decision takes, at least 2; halved whenever all blocks are given back.
        tolerance: change of the plasticity over a window, relative to its mean, below which a block freezes.
        lr_drop: all blocks are given back once the learning rate has fallen by this factor since the first froze.
        bootstrap: epochs at the start in which nothing is compared.
        samples: how many samples the network is compared on, at least 4.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range, or as `Freezer`.

    Source: Wang et al. (EuroSys 2023), "Egeria: Efficient DNN Training with Knowledge-Guided Layer Freezing".
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        interval: int = 1,
        fraction: float = 2 / 3,
        every: int = 50,
        window: int = 10,
        tolerance: float = 0.2,
        lr_drop: float = 10.0,
        bootstrap: int = 1,
        samples: int = 64,
    ) -> None:
        check_whole("every", every, 1)
        check_whole("window", window, 2)
        check_above("tolerance", tolerance, 0, 0.2)
        check_above("lr_drop", lr_drop, 1, 10)
        check_whole("bootstrap", bootstrap, 0)
        check_whole("samples", samples, FEWEST)
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        self.every, self.window, self.tolerance = every, window, tolerance
        self.lr_drop, self.bootstrap = lr_drop, bootstrap
        self._probe = Probe(model, samples)
        self._front = ""  # the block that is compared
        self._reference: Tensor | None = None  # how alike it found the samples, [n, n]
        self._values: list[float] = []  # its plasticity at the comparisons with this reference
        self._lr: float | None = None
        self._lr_frozen: float | None = None  # that of the first step with a frozen block

    def _prepare(self, run: Run) -> None:
        self._probe.draw(run)

    def _note(self, inputs: Any, lr: float | None) -> None:
        if lr is None:
            raise ValueError("expected the learning rate of the step, got None; try freezer.observe(inputs, lr=lr)")
        self._lr = lr
        if self._frozen and self._lr_frozen is None:
            self._lr_frozen = lr
        if not self._active or self._epoch < self.bootstrap or self._steps % self.every:
            return
        front = self._active[0]
        self._probe.take(inputs)
        now = similarities(self._probe.outputs([front])[front.name])
        if self._reference is None or front.name != self._front or len(self._values) >= 3 * self.window:
            self._front, self._reference, self._values = front.name, now, []
        else:
            self._values.append(float((now - self._reference).square().mean()))

    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        seen = len(self._values) if block.name == self._front else 0
        if seen < self.window:
            return Verdict(False, f"{seen} of {self.window} comparisons with one reference")
        change = trend(self._values[-self.window :])
        relation = "below" if change < self.tolerance else "not below"
        reason = (
            f"its plasticity changed by {change:.1%} over {self.window} comparisons, {relation} {self.tolerance:.1%}"
        )
        return Verdict(change < self.tolerance, reason)

    def _give_back(self, epoch: int) -> str | None:
        if self._lr_frozen is None or self._lr * self.lr_drop > self._lr_frozen * (1 + 1e-9):
            return None
        return f"the learning rate fell from {self._lr_frozen:.3g} to {self._lr:.3g}"

    def _gave_back(self) -> None:
        self._restart()
        self.window, self._lr_frozen = max(2, self.window // 2), None

    def _restart(self) -> None:
        self._reference, self._values = None, []

    def _own_state(self) -> dict[str, Any]:
        return {
            "probe": self._probe.state_dict(),
            "front": self._front,
            "reference": self._reference,
            "values": list(self._values),
            "window": self.window,
            "lr": self._lr,
            "lr_frozen": self._lr_frozen,
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        names = ("front", "reference", "values", "window", "lr", "lr_frozen")
        front, reference, values, window, lr, lr_frozen = (state[name] for name in names)
        self._probe.load_state_dict(state["probe"])
        self._front, self._reference, self._values = front, self._probe.here(reference), list(values)
        self.window, self._lr, self._lr_frozen = window, lr, lr_frozen


def trend(values: Sequence[float]) -> float:
    """By how much a line through `values` changes from the first to the last, relative to their mean; 0 if that is 0.

    The line is that of least squares.
    """
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.arange(len(values), dtype=torch.float64)
    x, mean = x - x.mean(), y.mean()
    slope = (x @ (y - mean)) / (x @ x)
    return abs(float(slope * (len(values) - 1) / mean)) if mean else 0.0
