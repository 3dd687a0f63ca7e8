"""Forgetting: the samples that were forgotten least often leave once, for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spfde.sieving.oneshot import OneShot
from spfde.sieving.window import EVER, Window

__all__ = ["Forgetting"]


class Forgetting(OneShot):
    """Score = number of forgetting events since the start; a sample that was never right has infinity.

    A forgetting event is a wrong presentation right after a correct one of the same sample. The source counts over
    whole trainings, averages five, and trains anew without the lowest: `Forgetting(..., scores=[first.scores, ...])`.
    Without `scores` it counts in the first three eighths of this training, and the samples leave then. Ties: the
    lower mean loss, then the lower index.

    Source: Toneva et al., An Empirical Study of Example Forgetting (ICLR 2019), sections 3 and 5.
    """

    AT = 3 / 8

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.3,
        *,
        at: int | None = None,
        epochs: int = 200,
        scores: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        self.window = Window(num_samples) if isinstance(num_samples, int) and num_samples > 0 else None
        super().__init__(num_samples, fraction, at, epochs, scores, seed, **ranks)

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self.window.add(samples, losses, correct)

    def _hardness(self) -> np.ndarray:
        window = self.window
        if not window.judged:  # neither right nor wrong: the mean loss alone
            scores = window.mean_loss()
        else:
            scores = np.where(window.right & EVER, window.forgotten, np.inf).astype(np.float32)
        return np.where(window.shown > 0, scores, np.nan).astype(np.float32)

    def _ties(self) -> np.ndarray:
        return self.window.mean_loss()

    def _why(self) -> str:
        return "fewest forgetting events so far, then the lower mean loss"

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), **self.window.state_dict()}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        super()._load_own(state)
        self.window.load_state_dict(state)
