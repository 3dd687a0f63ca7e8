"""Sieves that leave samples out once: the easiest by a score, for the rest of the training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spfde.sieving.checks import check_fraction, check_number, kind
from spfde.sieving.shuffle import share
from spfde.sieving.sieve import Sieve, SieveEvent
from spfde.sieving.window import hidden, lowest, ordered


class OneShot(Sieve):
    """All samples until epoch `at`; from then on the floor(fraction * num_samples) easiest are out for good.

    A subclass says how hard a sample is, `hardness`. Given `scores` of earlier trainings, their mean decides before the
    first epoch, so that the whole training runs without the easiest: as `scores` of another sieve of the same kind.

    Args:
        num_samples: size of the data set.
        fraction: share of the samples that leaves, in [0, 1).
        at: the epoch before which they leave; by default a share of `epochs` that the method's source suggests.
        epochs: of the whole training.
        scores: float [num_samples] of each earlier training, the higher the harder; infinity: never learnt.
        seed: of the order of each epoch.
        ranks: rank, world and group of `Sieve`.

    Raises:
        ValueError: an argument is out of its range, or samples would leave after the last epoch.
    """

    AT = 0.0  # when samples leave, as a share of the epochs

    def __init__(
        self,
        num_samples: int,
        fraction: float,
        at: int | None,
        epochs: int,
        scores: Sequence[torch.Tensor] | None,
        seed: int,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, seed, **ranks)
        self.fraction = check_fraction("fraction", fraction, example=0.2)
        self.epochs = check_number("epochs", epochs, 1)
        self.at = max(1, round(self.AT * epochs)) if at is None else check_number("at", at, 1)
        if self.at >= epochs and scores is None:
            raise ValueError(
                f"expected at before the last of {epochs} epochs, got {self.at}; try at={max(1, epochs // 2)}, or "
                "scores of an earlier training"
            )
        self._given = None if scores is None else _mean(scores, num_samples)
        if self._given is not None:
            self._leave(lowest(ordered(self._given), share(fraction, num_samples), in_order=False))

    @property
    def scores(self) -> torch.Tensor:
        """How hard each sample is by what was observed: float32 [num_samples]; NaN: not observed."""
        return torch.from_numpy(self._hardness())

    @abstractmethod
    def _hardness(self) -> np.ndarray:
        """How hard each sample is: float32 [num_samples], infinity the hardest, NaN unknown."""

    def _ties(self) -> np.ndarray | None:
        """What decides between samples of one score: float32 [num_samples], the lower the easier; None: the index."""
        return None

    def _boundary(self) -> SieveEvent | None:
        if self._given is not None or self.epoch != self.at:
            return None
        keys, ties = ordered(self._hardness()), self._ties()
        if ties is not None:
            unknown = keys == hidden(keys)
            keys = (keys.astype(np.uint64) << np.uint64(32)) | ordered(ties)
            keys[unknown] = hidden(keys)
        rows = lowest(keys, share(self.fraction, self.num_samples), in_order=False)
        self._leave(rows)
        return SieveEvent(
            self.epoch, len(rows), f"the {len(rows)} easiest of {self.num_samples} leave for good: {self._why()}"
        )

    @abstractmethod
    def _why(self) -> str:
        """What makes a sample easy, in a few words."""

    def _leave(self, rows: np.ndarray) -> None:
        active = np.ones(self.num_samples, bool)
        active[rows] = False
        self._choose(torch.from_numpy(np.flatnonzero(active)))

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "fraction": self.fraction, "at": self.at}

    def _own_state(self) -> dict[str, Any]:
        return {"given": torch.from_numpy(self._given.copy()) if self._given is not None else torch.empty(0)}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._given = state["given"].numpy().copy() if len(state["given"]) else None


def _mean(scores: Sequence[torch.Tensor], num_samples: int) -> np.ndarray:
    many = [scores] if isinstance(scores, torch.Tensor) else list(scores)
    for each in many:
        if not isinstance(each, torch.Tensor) or each.shape != (num_samples,) or not each.is_floating_point():
            raise ValueError(
                f"expected scores as float tensors [{num_samples}], got {kind(each)}; try sieve.scores of a training"
            )
    if not many:
        raise ValueError("expected scores of at least one training, got none; try scores=None")
    return np.mean([each.detach().cpu().numpy().astype(np.float64) for each in many], axis=0).astype(np.float32)
