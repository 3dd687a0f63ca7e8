"""SimFreeze: a block freezes once its likeness to an earlier snapshot of itself no longer changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from spfde._names import unknown
from spfde.analysis import gram, gram_cka
from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share, check_whole
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.probe import FEWEST, Probe
from spfde.levers import Run

THAWS = ("changed", "all")


class SimFreeze(Freezer):
    """Freezes blocks whose similarity (CKA) to a snapshot of themselves has become stable; thaws them on other data.

    The snapshot is the network as it was at the first comparison. Every `every` steps each active block's CKA with it
    is computed on a few fixed samples; a block is ready once the last `window` relative changes of that value are all
    below `threshold`. When the data change, say so by `data_changed`, with samples of the new: a frozen block whose CKA
    with the snapshot is another one there, by `threshold` or more, is given back at the next boundary with all behind
    it. Active blocks are compared on the new samples from then on.

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
        thaw: "changed": as above, which keeps a copy of the network; "all": every block is given back when the data
            change, and snapshot and samples are taken anew.

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
        thaw: str = "changed",
    ) -> None:
        check_whole("every", every, 1)
        check_whole("window", window, 1)
        check_share("threshold", threshold, "(0, 1)", 0.01)
        check_whole("bootstrap", bootstrap, 0)
        check_whole("samples", samples, FEWEST)
        if thaw not in THAWS:
            raise unknown("thaw", thaw, THAWS)
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        self.thaw = thaw
        self.every, self.window, self.threshold, self.bootstrap = every, window, threshold, bootstrap
        self._probe = Probe(model, samples)
        self._old: nn.Module | None = None  # the network of the snapshot
        self._snapshot: dict[str, Tensor] = {}  # Gram matrices [n, n] of what its blocks made of the samples
        self._values: dict[str, list[float]] = {}  # CKA with the snapshot, the last window + 1 since the masks moved
        self._settled: dict[str, float] = {}  # that of the frozen blocks when they froze, or when the data changed last
        self._changed = False
        self._new = Probe(model, samples)  # of the data that they changed to

    def data_changed(self, inputs: Any = None) -> None:
        """Has blocks given back at the next boundary: those to which the new data look different, or all.

        Args:
            inputs: of the network, samples of the new data; without them all blocks are given back, and snapshot and
                samples are taken anew.

        Raises:
            ValueError: `inputs` are fewer than 4 samples.
        """
        new = Probe(self.model, self._probe.samples)
        if inputs is not None:
            new.take(inputs)
        self._changed, self._new = True, new

    def _prepare(self, run: Run) -> None:
        self._probe.draw(run)

    def _note(self, inputs: Any, lr: float | None) -> None:
        if not self._active or self._epoch < self.bootstrap or self._steps % self.every:
            return
        self._probe.take(inputs)
        if not self._snapshot:
            if self.thaw == "changed":
                self._old = self._probe.copied()
            self._snapshot = self._grams(self._probe, self._old)
            return
        for name, output in self._probe.outputs(self._active).items():
            value = gram_cka(gram(output), self._snapshot[name])
            self._values[name] = [*self._values.get(name, []), value][-self.window - 1 :]

    def _grams(self, probe: Probe, network: nn.Module | None = None) -> dict[str, Tensor]:
        outputs = probe.outputs(self.blocks[: self._most], network)
        return {name: gram(output) for name, output in outputs.items()}

    def _elsewhere(self) -> dict[str, float] | None:
        """CKA of the frozen blocks with the snapshot on the new data; None where that is not to be known."""
        if self._old is None or self._new.inputs is None:
            return None
        blocks = self.blocks[: len(self._frozen)]
        now, then = self._new.outputs(blocks), self._new.outputs(blocks, self._old)
        return {name: gram_cka(gram(now[name]), gram(then[name])) for name in now}

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
        if not self._changed:
            return None
        values, stays = self._elsewhere(), self._stays(epoch)
        if values is None:
            return "the data changed"
        if stays == len(self._frozen):
            return None
        name = self._frozen[stays]
        return (
            f"on the new data the CKA of {name} with the snapshot is {values[name]:.3f}, not {self._settled[name]:.3f}"
        )

    def _stays(self, epoch: int) -> int:
        values = self._elsewhere()
        if values is None:
            return 0
        same = [
            _change(self._settled.get(name, math.nan), values[name]) < self.threshold for name in self._frozen
        ]  # not where nan
        return same.index(False) if False in same else len(same)

    def _gave_back(self) -> None:
        self._changed = True  # if only another rank was told

    def _decided(self) -> None:
        if self._changed:
            self._start_on_new_data()
        for name in self._frozen:
            if name not in self._settled and name in self._values:
                self._settled[name] = self._values[name][-1]

    def _start_on_new_data(self) -> None:
        values = self._elsewhere()
        self._values, self._changed = {}, False
        if values is None:
            self._probe.inputs, self._old, self._snapshot, self._settled = None, None, {}, {}
            return
        self._probe, self._new = self._new, Probe(self.model, self._probe.samples)
        self._snapshot = self._grams(self._probe, self._old)
        self._settled = {name: values[name] for name in self._frozen}

    def _restart(self) -> None:
        self._values = {}

    def _own_state(self) -> dict[str, Any]:
        return {
            "probe": self._probe.state_dict(),
            "new": self._new.state_dict(),
            "old": None if self._old is None else self._old.state_dict(),
            "snapshot": dict(self._snapshot),
            "values": {name: list(values) for name, values in self._values.items()},
            "settled": dict(self._settled),
            "changed": self._changed,
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        snapshot, values, changed = dict(state["snapshot"]), state["values"], bool(state["changed"])
        values, settled = {name: list(each) for name, each in values.items()}, dict(state["settled"])
        old = None if state["old"] is None else self._probe.copied()
        if old is not None:
            old.load_state_dict(state["old"])
        new = state["new"]
        self._probe.load_state_dict(state["probe"])
        self._new.load_state_dict(new)
        self._snapshot, self._values, self._changed = self._probe.here(snapshot), values, changed
        self._old, self._settled = old, settled


def _change(before: float, now: float) -> float:
    return abs(now - before) / abs(before) if before else math.inf
