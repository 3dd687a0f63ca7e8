"""SimFreeze: a block freezes once its likeness to an earlier snapshot of itself no longer changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from spfde.analysis import gram, gram_cka
from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share, check_whole
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.probe import FEWEST, Probe
from spfde.levers import Run


class SimFreeze(Freezer):
    """Freezes blocks whose similarity (CKA) to a snapshot of themselves has become stable.

    The snapshot is the network as it was at the first comparison. Every `every` steps each active block's CKA with it
    is computed on a few fixed samples; a block is ready once the last `window` relative changes of that value are all
    below `threshold`. When the data change, say so by `data_changed`: all blocks are given back at the next boundary,
    and snapshot and samples are taken anew.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        interval: epochs between two boundaries at which it decides.
        fraction: share of the blocks that may freeze, in (0, 1].
        every: steps between two comparisons.
        window: changes that have to be small one after the other.
        threshold: relative change of the similarity below which it is stable, in (0, 1).
        bootstrap: epochs at the start in which nothing is compared.
        samples: how many samples the network is compared on, at least 4.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range, or as `Freezer`.

    Source: Li et al. (2024), "EdgeOL: Efficient in-situ Online Learning on Edge Devices" (arXiv 2401.16694), SimFreeze.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        interval: int = 1,
        fraction: float = 2 / 3,
        every: int = 50,
        window: int = 3,
        threshold: float = 0.01,
        bootstrap: int = 1,
        samples: int = 64,
    ) -> None:
        check_whole("every", every, 1)
        check_whole("window", window, 1)
        check_share("threshold", threshold, "(0, 1)", 0.01)
        check_whole("bootstrap", bootstrap, 0)
        check_whole("samples", samples, FEWEST)
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        self.every, self.window, self.threshold, self.bootstrap = every, window, threshold, bootstrap
        self._probe = Probe(model, samples)
        self._snapshot: dict[str, Tensor] = {}  # Gram matrices [n, n] of what the blocks made of the samples
        self._values: dict[str, list[float]] = {}  # CKA with the snapshot, the last window + 1 since the masks moved
        self._changed = False

    def data_changed(self) -> None:
        """Has all blocks given back at the next boundary, and compares on samples of the new data from then on."""
        self._changed = True

    def _prepare(self, run: Run) -> None:
        self._probe.draw(run)

    def _note(self, inputs: Any, lr: float | None) -> None:
        if not self._active or self._epoch < self.bootstrap or self._steps % self.every:
            return
        self._probe.take(inputs)
        if not self._snapshot:
            outputs = self._probe.outputs(self.blocks[: self._most])
            self._snapshot = {name: gram(output) for name, output in outputs.items()}
            return
        for name, output in self._probe.outputs(self._active).items():
            value = gram_cka(gram(output), self._snapshot[name])
            self._values[name] = [*self._values.get(name, []), value][-self.window - 1 :]

    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        if self._changed:
            return Verdict(False, "the data changed")
        values = self._values.get(block.name, [])
        if len(values) <= self.window:
            return Verdict(False, f"{max(0, len(values) - 1)} of {self.window} changes of its similarity were seen")
        changes = [_change(*pair) for pair in pairwise(values)]
        stable = all(change < self.threshold for change in changes)  # not where one is nan: all samples look the same
        relation = "below" if stable else "not below"
        reason = f"its CKA with the snapshot, now {values[-1]:.3f}, changed by at most {max(changes):.2%}, {relation}"
        return Verdict(stable, f"{reason} {self.threshold:.2%}, in {self.window} comparisons")

    def _give_back(self, epoch: int) -> str | None:
        return "the data changed" if self._changed else None

    def _gave_back(self) -> None:
        self._changed = True  # if only another rank was told

    def _decided(self) -> None:
        if self._changed:
            self._probe.inputs, self._snapshot, self._values, self._changed = None, {}, {}, False

    def _restart(self) -> None:
        self._values = {}

    def _own_state(self) -> dict[str, Any]:
        return {
            "probe": self._probe.state_dict(),
            "snapshot": dict(self._snapshot),
            "values": {name: list(values) for name, values in self._values.items()},
            "changed": self._changed,
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        snapshot, values, changed = dict(state["snapshot"]), state["values"], bool(state["changed"])
        values = {name: list(each) for name, each in values.items()}
        self._probe.load_state_dict(state["probe"])
        self._snapshot, self._values, self._changed = self._probe.here(snapshot), values, changed


def _change(before: float, now: float) -> float:
    return abs(now - before) / abs(before) if before else math.inf
