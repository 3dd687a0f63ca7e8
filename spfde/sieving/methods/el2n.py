"""EL2N: samples whose error is small early in the training leave once, for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_number
from spfde.sieving.oneshot import OneShot
from spfde.sieving.scores import MeanScores

__all__ = ["EL2N"]


class EL2N(OneShot):
    """Score = mean of |softmax(logits) - onehot(target)|_2 over the last `average` epochs before `at`.

    The source averages over ten networks trained to the same early epoch: `EL2N(..., scores=[...])` takes their
    `scores`. Within one training the last epochs stand for them. Needs logits [n, classes].

    Args:
        average: epochs that are averaged over.
        (the others are those of every one-shot sieve: num_samples, fraction, at, epochs, scores, seed)

    Source: Paul, Ganguli, Dziugaite, Deep Learning on a Data Diet (NeurIPS 2021), definition 3 and section 4: epoch 20
    of 200, half of CIFAR-10 out.
    """

    AT = 0.1
    by_logits = True

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.5,
        *,
        at: int | None = None,
        epochs: int = 200,
        average: int = 10,
        scores: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, fraction, at, epochs, scores, seed, **ranks)
        self.average = check_number("average", average, 1)
        self._errors = MeanScores(num_samples)

    def _judge(
        self, outputs: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        _, correct = super()._judge(outputs, targets, losses)
        return error_norms(outputs, targets), correct

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        if self._given is None and self.at - self.average <= self.epoch < self.at:
            self._errors.add(samples, losses)

    def _hardness(self) -> np.ndarray:
        return self._errors.means()

    def _why(self) -> str:
        return f"least error norm |p - y|, mean of the last {min(self.average, self.at)} epochs"

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), **self._errors.state_dict()}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        super()._load_own(state)
        self._errors.load_state_dict(state)


def error_norms(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """|softmax(logits) - target|_2 [n], for logits [n, classes] and targets int64 [n] or soft ones [n, classes].

    Raises:
        ValueError: the outputs are not those of a classification.
    """
    if logits.ndim != 2 or (targets.is_floating_point() and targets.shape != logits.shape):
        raise ValueError(
            f"expected logits [n, classes], got {list(logits.shape)}; try Circular or InfoBatch, which need losses only"
        )
    error = logits.detach().float().softmax(1)
    targets = targets.to(error.device)
    if targets.is_floating_point():
        return (error - targets).norm(dim=1)
    error[torch.arange(len(error), device=error.device), targets] -= 1
    return error.norm(dim=1)
