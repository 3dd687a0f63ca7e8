"""Every generator that a run may draw from: torch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Return where the generators are, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def restore(kept: Mapping[str, Any]) -> None:
    """Put the generators where `state` found them."""
    kind, keys, *rest = kept["numpy"]
    torch.set_rng_state(kept["torch"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(kept["python"])


def seed(*key: int) -> None:
    """Start every generator at a pure function of `key`: integers >= 0."""
    # With its length: to NumPy a key that ends in zeros is the same as one without them.
    drawn = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    torch.manual_seed(int(drawn[0]) << 32 | int(drawn[1]))
    np.random.seed(drawn)
    random.seed(drawn.tobytes())


@contextmanager
def isolated() -> Iterator[None]:
    """Leave the generators afterwards as they were before."""
    before = state()
    try:
        yield
    finally:
        restore(before)
