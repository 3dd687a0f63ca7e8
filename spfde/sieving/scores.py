"""Running figures of samples: means that old observations fade from, and sums within one epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class LatestScores:
    """The latest figure of every sample, or an exponential mean of them: float32 [num_samples], NaN before the first.

    keep: share of the old value that stays, in [0, 1).
    """

    def __init__(self, num_samples: int, keep: float = 0.0) -> None:
        self.keep = np.float32(keep)
        self.values = np.full(num_samples, np.nan, np.float32)

    def add(self, samples: np.ndarray, figures: np.ndarray) -> None:
        """Takes figures [n] of samples [n]; of one that appears twice the last."""
        if self.keep:
            before = self.values[samples]
            figures = np.where(np.isnan(before), figures, self.keep * before + (1 - self.keep) * figures)
        self.values[samples] = figures

    def state_dict(self) -> dict[str, Any]:
        """A copy of the values."""
        return {"scores": torch.from_numpy(self.values.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values."""
        self.values = state["scores"].numpy().copy()


class MeanScores:
    """Mean figure of every sample since `reset`; NaN where there is none."""

    def __init__(self, num_samples: int) -> None:
        self.sums, self.counts = np.zeros(num_samples, np.float32), np.zeros(num_samples, np.uint16)

    def reset(self) -> None:
        """Forgets all figures."""
        self.sums.fill(0)
        self.counts.fill(0)

    def add(self, samples: np.ndarray, figures: np.ndarray) -> None:
        """Takes figures [n] of samples [n]."""
        np.add.at(self.sums, samples, figures)
        np.add.at(self.counts, samples, np.uint16(1))

    def means(self) -> np.ndarray:
        """float32 [num_samples]."""
        return np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), np.nan).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Copies of sums and counts."""
        return {"sums": torch.from_numpy(self.sums.copy()), "counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values."""
        self.sums, self.counts = state["sums"].numpy().copy(), state["counts"].numpy().copy()
