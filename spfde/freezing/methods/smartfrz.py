"""SmartFRZ: a trained predictor looks at how a layer's weights have moved and says whether to freeze it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_share, check_whole
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.smartfrz.history import SNAPSHOTS, History, sampled_layers
from spfde.freezing.smartfrz.predictor import SHIPPED, load_predictor


class SmartFRZ(Freezer):
    """Freezes a block once the predictor is as sure as `threshold` of every one of its layers.

    It looks at windows of 30 snapshots of 1,024 weights sampled from each layer of the first `ahead` active blocks,
    spread over the `interval` epochs between two boundaries. The first interval is only measured, to know how many
    steps that is. No window lasts across a change of the masks; where these change more often, windows are as short as
    the time between two changes, and where that is less than 30 steps nothing freezes.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        interval: epochs between two boundaries at which it decides.
        fraction: share of the blocks that may freeze, in (0, 1].
        threshold: least probability of every layer of a block, in (0, 1).
        ahead: blocks looked at, so at most so many freeze at a boundary; more cost more memory.
        predictor: path of a predictor that `spfde smartfrz train` wrote; None: the one that comes with the package.
        seed: of the sampling of weights.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range, the file holds no predictor, or the base class refuses the blocks.

    Source: SmartFRZ (ICLR 2023, arXiv 2401.16720).
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        interval: int = 1,
        fraction: float = 2 / 3,
        threshold: float = 0.5,
        ahead: int = 3,
        predictor: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, blocks, interval=interval, fraction=fraction)
        check_share("threshold", threshold, "(0, 1)", 0.5)
        check_whole("ahead", ahead, 1)
        check_whole("seed", seed, 0)
        self.threshold, self.ahead = threshold, ahead
        self.predictor = SHIPPED if predictor is None else Path(predictor)
        load_predictor(self.predictor)  # to refuse it now; read when needed, as it is larger than what is kept besides
        self._layers = {block.name: tuple(sampled_layers(block)) for block in self.blocks}
        order = [name for block in self.blocks for name, _ in self._layers[block.name]]
        self._keys = {name: (seed, number) for number, name in enumerate(order)}
        self._histories: dict[str, History] = {}
        self._probability: dict[str, float] = {}  # of the layers whose window was completed since the last boundary
        self._crossed = 0  # steps there were at the last boundary
        self._span = 0  # steps between the last two

    def _note(self, inputs: Any, lr: float | None) -> None:
        under_way = {name: history for name, history in self._histories.items() if not history.complete}
        for history in under_way.values():
            history.observe()
        full = {name: history.window for name, history in under_way.items() if history.complete}
        if full:
            windows = torch.stack([*full.values()])
            found = load_predictor(self.predictor).to(windows.device).probability(windows)
            self._probability.update(zip(full, found.tolist(), strict=True))

    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        names = [name for name, _ in self._layers[block.name]]
        missing = [name for name in names if name not in self._probability]
        if missing or not names:
            history = self._histories.get(missing[0]) if missing else None
            taken = 0 if history is None else history.taken
            return Verdict(False, f"{taken} of {SNAPSHOTS} snapshots since its window began")
        least = min(names, key=self._probability.__getitem__)
        probability = self._probability[least]
        sure = probability >= self.threshold
        relation = "at least" if sure else "below"
        return Verdict(
            sure, f"probability {probability:.2f} of {least}, the least of {len(names)}, {relation} {self.threshold:g}"
        )

    def _restart(self) -> None:
        for history in self._histories.values():
            history.cut()

    def _decided(self) -> None:
        self._span, self._crossed = self._steps - self._crossed, self._steps
        self._probability = {}
        if self._span:
            watched = dict(layer for block in self._active[: self.ahead] for layer in self._layers[block.name])
            known = self._histories
            self._histories = {n: known.get(n) or History(m, self._keys[n]) for n, m in watched.items()}
        for history in self._histories.values():
            history.begin(self._span)

    def _own_state(self) -> dict[str, Any]:
        return {
            "histories": {name: history.state_dict() for name, history in self._histories.items()},
            "probability": dict(self._probability),
            "crossed": self._crossed,
            "span": self._span,
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        layers = dict(layer for own in self._layers.values() for layer in own)
        histories = {name: History(layers[name], self._keys[name]) for name in state["histories"]}
        for name, history in histories.items():
            history.load_state_dict(state["histories"][name])
        probability, crossed, span = (state[name] for name in ("probability", "crossed", "span"))
        self._histories, self._probability, self._crossed, self._span = histories, dict(probability), crossed, span
