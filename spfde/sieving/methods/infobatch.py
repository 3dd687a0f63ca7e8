"""InfoBatch: some of the easy samples are out, the easy ones that stay weigh more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction, check_number
from spfde.sieving.scores import LatestScores
from spfde.sieving.shuffle import derived, share, shuffled
from spfde.sieving.sieve import Sieve, SieveEvent

__all__ = ["InfoBatch"]


class InfoBatch(Sieve):
    """Of the m samples whose latest loss is below the mean, floor(fraction * m) are out, drawn anew for every epoch.

    The others below the mean weigh m / (m - floor(fraction * m)), 2 for a half, so that the sum of the gradients of an
    epoch is in expectation that of all samples: multiply the per-sample losses with what `observe` returns. After
    floor(anneal * epochs) epochs all samples are in and weigh 1. The volume varies; the first epoch sees all samples.

    Args:
        num_samples: size of the data set.
        fraction: share of those below the mean that is out, in [0, 1).
        epochs: of the whole training.
        anneal: share of the epochs in which samples are left out, in [0, 1].
        seed: of the draws and of the order of each epoch.
        ranks: rank, world and group of `Sieve`.

    Source: Qin et al., InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning (ICLR 2024), with their
    defaults. Samples that were not observed yet are not below the mean; the paper's code gives them a loss of 3.
    """

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.5,
        *,
        epochs: int = 200,
        anneal: float = 0.875,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.fraction = check_fraction("fraction", fraction, example=0.5)
        self.anneal = check_fraction("anneal", anneal, example=0.875, one=True)
        self.epochs = check_number("epochs", epochs, 1)
        self._losses = LatestScores(num_samples)
        self._easy = np.zeros(num_samples, bool)
        self._factor = 1.0

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self._losses.add(samples, losses)

    def _weights(self, samples: np.ndarray) -> torch.Tensor | None:
        if self._factor == 1:
            return None
        return torch.from_numpy(np.where(self._easy[samples], np.float32(self._factor), np.float32(1)))

    def _boundary(self) -> SieveEvent | None:
        if self.epoch >= share(self.anneal, self.epochs):
            back, self._factor = self.num_samples - self.volume, 1.0
            if not back:
                return None
            self._choose(torch.arange(self.num_samples))
            return SieveEvent(self.epoch, back, "all samples are back for the last epochs, and weigh the same")
        losses = self._losses.values
        known = ~np.isnan(losses)
        mean = float(losses[known].mean(dtype=np.float64)) if known.any() else 0.0
        self._easy = known & (losses < mean)
        easy = torch.from_numpy(np.flatnonzero(self._easy))
        out = shuffled(easy, derived(self.seed, "out", self.epoch))[: share(self.fraction, len(easy))]
        active = np.ones(self.num_samples, bool)
        active[out.numpy()] = False
        self._choose(torch.from_numpy(np.flatnonzero(active)))
        self._factor = len(easy) / (len(easy) - len(out)) if len(out) else 1.0
        return SieveEvent(
            self.epoch,
            len(out),
            f"{len(out)} of {len(easy)} below the mean loss {mean:.4g} are out, the others weigh {self._factor:.4g}",
        )

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "fraction": self.fraction, "anneal": self.anneal, "epochs": self.epochs}

    def _own_state(self) -> dict[str, Any]:
        return {
            **self._losses.state_dict(),
            "easy": torch.from_numpy(self._easy.copy()),
            "factor": self._factor,
        }

    def _load_own(self, state: Mapping[str, Any]) -> None:
        if not state["factor"] >= 1:
            raise ValueError(f"expected a factor of at least 1, got {state['factor']}; try another checkpoint")
        self._losses.load_state_dict(state)
        self._easy, self._factor = state["easy"].numpy().copy(), state["factor"]
