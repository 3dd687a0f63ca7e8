"""UCB: the samples of the highest loss, plus a bonus for those that were shown seldom."""

from __future__ import annotations

from typing import Any

import numpy as np

from spfde.sieving.reselect import ReselectSieve, highest

__all__ = ["UCB"]


class UCB(ReselectSieve):
    """Those stay whose mean_i + confidence * deviation * sqrt(ln t / n_i) is highest.

    mean_i: exponential mean of the sample's losses; deviation: that of all means, so that `confidence` has no unit; t:
    epochs so far; n_i: presentations of the sample. What is out for long comes back, as t grows and n_i does not.

    Args:
        confidence: weight of the bonus, >= 0.
        (the others are those of every reselecting sieve: num_samples, fraction, interval, keep, seed)

    Raises:
        ValueError: an argument is out of its range.

    Source: Raju, Daruwalla, Lipasti, Accelerating Deep Learning with Dynamic Data Pruning (2021, arXiv 2111.12621),
    with the bonus of UCB1 (Auer, Cesa-Bianchi, Fischer 2002) and without their pass over all samples.
    """

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.2,
        interval: int = 5,
        *,
        confidence: float = 1.0,
        keep: float = 0.8,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, fraction, interval, keep, seed, **ranks)
        number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
        if not number or not 0 <= confidence < float("inf"):
            raise ValueError(f"expected confidence >= 0, got {confidence!r}; try 1.0")
        self.confidence = float(confidence)

    def _best(self, count: int) -> tuple[np.ndarray, str]:
        means = self._losses.values
        known = means[~np.isnan(means)]
        deviation = np.float32(known.std(dtype=np.float64) if len(known) else 0)
        bonus = np.sqrt(np.log(np.float32(self.epoch)) / np.maximum(self._presentations, 1)).astype(np.float32)
        best = highest(means + np.float32(self.confidence) * deviation * bonus, count)
        return best, "the highest mean loss plus a bonus for what was shown seldom"

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "confidence": self.confidence}
