"""What a reference training leaves for the predictor to learn from: windows of every layer, and their alignment."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from spfde._modules import eval_mode
from spfde.analysis import gram, hsic1
from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS, History, sampled_layers
from spfde.levers import Answer, Backward, EpochEnd, EpochStart, Event, Run

PROBED = 64  # samples of a minibatch of the alignment


@dataclass(frozen=True, eq=False)
class Record:
    """One reference training.

    about: what was trained, in plain values. layers: names. windows: float32 [layers, epochs, SNAPSHOTS, SAMPLES], each
    of one epoch. alignment: float64 [layers, epochs], CKA of what a layer returns after an epoch with what it returns
    at the end of the training; nan where a layer returned the same for every sample.
    """

    about: Mapping[str, Any]
    layers: tuple[str, ...]
    windows: np.ndarray
    alignment: np.ndarray

    def write(self, file: BinaryIO) -> None:
        """Writes it as a numpy archive that holds nothing pickled."""
        text = json.dumps({"about": dict(self.about), "layers": self.layers})
        about = np.frombuffer(text.encode(), np.uint8)
        np.savez(file, about=about, windows=self.windows, alignment=self.alignment)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads what `write` wrote.

        Raises:
            ValueError: the file holds no record.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                text = json.loads(archive["about"].tobytes())
                return cls(text["about"], tuple(text["layers"]), archive["windows"], archive["alignment"])
        except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile) as error:
            raise ValueError(
                f"expected the record of a reference training in {path}, got an error ({error}); try deleting it"
            ) from error


class Recorder:
    """A lever that records a training for SmartFRZ's predictor.

    Args:
        probe: samples [n, ...] whose representations are compared, n a multiple of 64 or cut to one.
        seed: of the sampling of weights.

    Raises:
        ValueError: fewer than 64 samples; in a training, an epoch with fewer steps than a window has snapshots.
    """

    needs: Collection[type[Event]] = frozenset({EpochStart, Backward, EpochEnd})

    def __init__(self, probe: Tensor, seed: int = 0) -> None:
        if len(probe) < PROBED:
            raise ValueError(f"expected at least {PROBED} samples to probe with, got {len(probe)}; try more")
        self.probe = probe[: len(probe) // PROBED * PROBED].split(PROBED)
        self.seed = seed
        self._histories: dict[str, History] = {}
        self._windows: dict[str, list[Tensor]] = {}
        self._grams: list[dict[str, Tensor]] = []  # of every epoch, by layer: [minibatches, PROBED, PROBED]

    def on(self, event: Event, run: Run) -> Answer:
        """Follows a training; decides nothing."""
        if isinstance(event, EpochStart):
            self._begin(event.steps, run)
        elif isinstance(event, Backward):
            for history in self._histories.values():
                history.observe()
        elif isinstance(event, EpochEnd):
            for name, history in self._histories.items():
                self._windows[name].append(history.window.cpu().clone())
            self._grams.append(self._probed(run.model))
        return None

    def _begin(self, steps: int, run: Run) -> None:
        if steps < SNAPSHOTS:
            raise ValueError(f"expected at least {SNAPSHOTS} steps in an epoch, got {steps}; try smaller batches")
        if not self._histories:
            layers = dict(layer for block in run.blocks for layer in sampled_layers(block))
            self._histories = {n: History(m, (self.seed, i)) for i, (n, m) in enumerate(layers.items())}
            self._windows = {name: [] for name in layers}
        for history in self._histories.values():
            history.begin(steps)

    @torch.no_grad()
    def _probed(self, model: nn.Module) -> dict[str, Tensor]:
        """The Gram matrices of what every layer returns for the probe."""
        found: dict[str, list[Tensor]] = {name: [] for name in self._histories}

        def look(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            found[name].append(gram(output))

        hooks = [h.module.register_forward_hook(partial(look, name)) for name, h in self._histories.items()]
        try:
            with eval_mode(model):
                for batch in self.probe:
                    model(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.stack(grams) for name, grams in found.items()}

    def record(self, **about: Any) -> Record:
        """What was recorded by the end of the training, which the last epoch stands for."""
        names = tuple(self._histories)
        alignment = [[_alignment(each[name], self._grams[-1][name]) for each in self._grams] for name in names]
        windows = torch.stack([torch.stack(self._windows[name]) for name in names])
        return Record(about, names, windows.view(len(names), -1, SNAPSHOTS, SAMPLES).numpy(), np.array(alignment))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a reference training is not resumed, it starts over."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing over."""


def _alignment(ours: Tensor, theirs: Tensor) -> float:
    """Minibatch-unbiased CKA of two series of Gram matrices [minibatches, n, n]."""
    pairs = list(zip(ours, theirs, strict=True))
    cross, own, other = (sum(hsic1(a[i], a[j]) for a in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    return cross / (own * other) ** 0.5 if own > 0 and other > 0 else float("nan")
