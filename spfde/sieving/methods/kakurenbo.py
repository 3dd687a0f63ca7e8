"""KAKURENBO: what is predicted right, surely, at a low loss hides for an epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from spfde.levers import Answer, EpochEnd, Event, Loss, Run
from spfde.sieving.checks import check_fraction, check_number
from spfde.sieving.scores import LatestScores
from spfde.sieving.shuffle import share
from spfde.sieving.sieve import Sieve, SieveEvent
from spfde.sieving.window import lowest, ordered

__all__ = ["Kakurenbo"]

# In tenths: share of the training, share of `fraction` from there on.
STEPS = ((0, 10), (3, 8), (6, 6), (8, 4))


class Kakurenbo(Sieve):
    """Of the floor(F * num_samples) samples of the lowest loss, those hide whose last prediction was right and sure.

    F is `fraction`, from 0.3, 0.6 and 0.8 of the epochs on 0.8, 0.6 and 0.4 of it. All losses of an epoch are
    multiplied with num_samples / active: for SGD the larger learning rate of the source. What hides is looked at once
    an epoch by a forward pass of its own, as the source does: in `fit` by itself, in a loop of your own by `look`; its
    seconds are in `report()`. Without it a hidden sample comes back after one epoch. Needs logits [n, classes]: losses
    are the plain cross-entropy of them, also where training smooths labels, so that all compare.

    Args:
        num_samples: size of the data set.
        fraction: largest share of the samples that hides, in [0, 1).
        confidence: largest probability of a prediction that counts as sure, in [0, 1].
        epochs: of the whole training.
        seed: of the order of each epoch.
        ranks: rank, world and group of `Sieve`.

    Source: Nguyen et al., KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training (NeurIPS 2023), with
    their threshold of 0.7 and steps.
    """

    needs = frozenset({Loss, EpochEnd})
    by_logits = True

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.3,
        *,
        confidence: float = 0.7,
        epochs: int = 100,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.fraction = check_fraction("fraction", fraction, example=0.3)
        self.confidence = check_fraction("confidence", confidence, example=0.7, one=True)
        self.epochs = check_number("epochs", epochs, 1)
        self._losses, self._sure = LatestScores(num_samples), np.zeros(num_samples, bool)

    def look(
        self, indices: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, *, gathered: bool = False
    ) -> None:
        """Takes note of samples that hide, from a forward pass in evaluation mode at the end of an epoch.

        On many ranks all of them call it, equally often, each with a part of the samples or with all.

        Raises:
            TypeError, ValueError: as `observe`, but for samples that are out.
        """
        _, whole = self._gather(
            lambda: self._batch(indices, logits, targets, None, None, gathered, trained=False), gathered
        )
        self._note(whole.samples, whole.figures, whole.correct)

    def on(self, event: Event, run: Run) -> Answer:
        """Observes the losses of a batch; looks at what hides once an epoch is over."""
        if not isinstance(event, EpochEnd):
            return super().on(event, run)
        if event.epoch + 1 >= run.epochs:
            return None  # nothing is chosen any more
        begin = time.perf_counter()
        for indices, outputs, targets in run.predictions(self.removed):
            self.look(indices, outputs, targets)
        self._extra_seconds += time.perf_counter() - begin
        return None

    def _judge(
        self, outputs: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
            raise ValueError(
                f"expected logits [n, classes] and classes [n] for Kakurenbo, got {list(outputs.shape)} and "
                f"{list(targets.shape)}; try InfoBatch, which needs losses only"
            )
        return super()._judge(outputs, targets, None)

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        self._losses.add(samples, losses)
        self._sure[samples] = correct & (np.exp(-losses) >= self.confidence)  # where right, it is the largest one

    def _weights(self, samples: np.ndarray) -> torch.Tensor | None:
        if self.volume == self.num_samples:
            return None
        return torch.full((len(samples),), self.num_samples / self.volume)

    def _boundary(self) -> SieveEvent | None:
        part = next(part for begin, part in reversed(STEPS) if 10 * self.epoch >= begin * self.epochs)
        limit = share(self.fraction, self.num_samples * Fraction(part, 10))
        low = lowest(ordered(self._losses.values), limit, in_order=False)
        hide = low[self._sure[low]]
        self._losses.values[hide] = np.nan  # until it is looked at: else it would hide for ever unseen
        active = np.ones(self.num_samples, bool)
        active[hide] = False
        self._choose(torch.from_numpy(np.flatnonzero(active)))
        return SieveEvent(
            self.epoch,
            len(hide),
            f"of the {len(low)} of the lowest loss {len(hide)} hide: predicted right with at least {self.confidence}",
        )

    def _identity(self) -> dict[str, Any]:
        own = {"fraction": self.fraction, "confidence": self.confidence, "epochs": self.epochs}
        return {**super()._identity(), **own}

    def _own_state(self) -> dict[str, Any]:
        return {**self._losses.state_dict(), "sure": torch.from_numpy(self._sure.copy())}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._losses.load_state_dict(state)
        self._sure = state["sure"].numpy().copy()
