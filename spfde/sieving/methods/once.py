"""Once: MEST's one-time removal of the samples that were forgotten least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spfde.sieving.methods.forgetting import Forgetting

__all__ = ["Once"]


class Once(Forgetting):
    """Counts forgetting events from the first epoch on; at 7/16 of the training the easiest leave, none comes back.

    MEST removes 12,000 of CIFAR's 50,000 samples before epoch 70 of 160, with the mask updates going on.

    Source: MEST (NeurIPS 2021), "Data efficiency", and the settings of its published scripts.
    """

    AT = 7 / 16

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.24,
        *,
        at: int | None = None,
        epochs: int = 160,
        scores: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, fraction, at=at, epochs=epochs, scores=scores, seed=seed, **ranks)
