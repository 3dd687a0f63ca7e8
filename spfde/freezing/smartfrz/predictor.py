"""SmartFRZ's predictor: attention of a layer's newest snapshot to those before it, and whether to freeze the layer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from spfde._names import unknown
from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS

FORMS = ("quantiles", "displacements", "weights")
LEAST = 1e-4  # smaller displacements count as this one
SHIPPED = Path(__file__).with_name("predictor.npz")


class Predictor(nn.Module):
    """Windows [n, SNAPSHOTS, SAMPLES] to logits [n, 2]: go on training the layer, or freeze it.

    Keys and values are of all snapshots but the newest, whose query attends to them: softmax(q . k_i) v_i, then a head.
    One predictor serves layers of every size and kind, for each gives the same number of weights.

    Args:
        form: what the networks are shown: "weights", as they are (the paper); "displacements", how far each weight is
            from where it was in the oldest snapshot, in multiples of the sample's root mean square, so that the scale
            of a layer does not matter; or "quantiles", the sizes of the displacements, sorted and as logarithms, so
            that neither does the order in which weights were drawn, which means nothing.

    Raises:
        ValueError: an unknown form; in forward, windows of another size.

    Source: SmartFRZ (arXiv 2401.16720); sizes as in public reimplementations.
    """

    def __init__(self, form: str = "quantiles") -> None:
        super().__init__()
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        self.form = form
        self.key, self.value, self.query = (_mlp(SAMPLES, 256, 256, 64) for _ in range(3))
        self.head = _mlp(64, 32, 32, 2)
        with torch.no_grad():
            for last in (self.key[-1], self.query[-1]):
                last.weight.mul_(0.3)  # so that attention is spread at first

    def forward(self, windows: Tensor) -> Tensor:
        return self.attend(self.shown(windows))

    def shown(self, windows: Tensor) -> Tensor:
        """Windows in the predictor's form, of the same shape.

        Raises:
            ValueError: windows of another size.
        """
        if windows.ndim != 3 or windows.shape[1:] != (SNAPSHOTS, SAMPLES):
            raise ValueError(
                f"expected windows [n, {SNAPSHOTS}, {SAMPLES}], got {list(windows.shape)}; try windows.unsqueeze(0)"
            )
        if self.form == "weights":
            return windows
        moved = displacements(windows)
        return moved if self.form == "displacements" else moved.abs().sort(2).values.clamp_min(LEAST).log10() + 2

    def attend(self, shown: Tensor) -> Tensor:
        """The logits [n, 2] of what `shown` returned."""
        past, newest = shown[:, :-1], shown[:, -1]
        attention = torch.einsum("nd,ntd->nt", self.query(newest), self.key(past)).softmax(1)
        return self.head(torch.einsum("nt,ntd->nd", attention, self.value(past)))

    @torch.no_grad()
    def probability(self, windows: Tensor) -> Tensor:
        """The probability [n] that a layer may be frozen."""
        return self(windows).softmax(1)[:, 1]

    def write(self, file: BinaryIO) -> None:
        """Writes the weights in half precision, as a numpy archive that holds nothing pickled."""
        arrays = {name: tensor.half().cpu().numpy() for name, tensor in self.state_dict().items()}
        np.savez(file, form=np.frombuffer(json.dumps(self.form).encode(), np.uint8), **arrays)


def displacements(windows: Tensor) -> Tensor:
    """How far weights are from where they were in the oldest snapshot, in root mean squares of the sample then."""
    start = windows[:, :1]
    scale = start.square().mean(2, keepdim=True).sqrt().clamp_min(torch.finfo(windows.dtype).tiny)
    return (windows - start) / scale


def load_predictor(path: Path = SHIPPED) -> Predictor:
    """Reads a predictor that `Predictor.write` wrote; the shipped one if nothing is said. Nothing is unpickled.

    Raises:
        ValueError: there is no such file, or it holds no predictor.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        predictor = Predictor(json.loads(arrays.pop("form").tobytes()))
        predictor.load_state_dict({name: torch.from_numpy(array).float() for name, array in arrays.items()})
    except (OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected a predictor in {path}, got an error ({reason}); try what `spfde smartfrz train` wrote"
        ) from error
    return predictor.eval().requires_grad_(False)


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLUs between them, which start as He et al. have it."""
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers[:-1])
