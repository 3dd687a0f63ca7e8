"""What the predictor is to say: whether a layer, with hindsight, might have been frozen after an epoch."""

from __future__ import annotations

import numpy as np

LEVEL = 0.98


def settled(alignment: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """After which epochs a layer was settled, bool of the shape of `alignment` [layers, epochs].

    Settled: from then on its representation never was less alike that of the end of the training than `level`, as CKA
    (`Record.alignment`); so a layer that froze would have kept nearly what it came to. Where CKA is nan, it is not.
    """
    known = np.where(np.isnan(alignment), -1.0, alignment)
    return np.minimum.accumulate(known[:, ::-1], axis=1)[:, ::-1] >= level
