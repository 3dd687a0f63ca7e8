"""The embedded task: real handwritten digits, composed into cluttered 32x32 images.

The scans are the 1,797 of scikit-learn's `load_digits` (8x8, shipped inside scikit-learn, nothing is
downloaded; UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998). Train and test
images come from disjoint scans, and clutter comes from training scans only.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spfde.data import compose
from spfde.data.datasets import DataSets, Images, Normalise

CLASSES = 10
HELD_OUT = 0.25  # share of the scans of each class that only test images use
MOST = 10**6  # of either half: 4 GiB, composed at about a thousand a second
BLOCK = 500  # images are made in whole blocks, so image i does not depend on how many are asked for
REFERENCE = 1000  # the first training images, whose mean and deviation normalise everything
SPLIT, TRAIN, TEST = range(3)  # random streams; never renumber


def load(train: int = 8000, test: int = 2000, seed: int = 0) -> DataSets:
    """Compose the "digits" task: 10 classes, images [1, 32, 32], normalised with training statistics.

    Image i of a half is a function of (seed, half, i) alone: the same bits for any count and any threads.

    Args:
        train: number of training images, 1 to 10**6.
        test: number of test images, 1 to 10**6.
        seed: of the split into training and test scans, and of every image; at least 0.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
        ImportError: scikit-learn is missing.
    """
    _check(train=(train, 1, MOST), test=(test, 1, MOST), seed=(seed, 0, None))
    train_images, train_targets = render(TRAIN, train, seed)
    test_images, test_targets = render(TEST, test, seed)
    normalise = Normalise.of(render(TRAIN, REFERENCE, seed)[0].numpy())
    return DataSets(
        name="digits",
        train=Images(normalise(train_images), train_targets),
        test=Images(normalise(test_images), test_targets),
        num_classes=CLASSES,
        shape=(1, compose.SIZE, compose.SIZE),
    )


@lru_cache(maxsize=1)
def scans() -> tuple[Tensor, np.ndarray]:
    """The real scans, float32 [1797, 8, 8] in [0, 1], and their classes, int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which holds the scans of the 'digits' data set, got no such module, "
            "try pip install scikit-learn"
        ) from error
    raw = load_digits()
    return torch.from_numpy(raw.images / 16).float(), raw.target.astype(np.int64)


def split(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the test scans: disjoint, each class in the same proportion."""
    random = _stream(seed, SPLIT)
    classes = scans()[1]
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for digit in range(CLASSES):
        members = random.permutation(np.flatnonzero(classes == digit))
        held_out = round(HELD_OUT * len(members))
        halves[0].append(members[held_out:])
        halves[1].append(members[:held_out])
    return np.concatenate(halves[0]), np.concatenate(halves[1])


def render(half: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of TRAIN or TEST, uint8 [count, 1, 32, 32], and classes, int64 [count]."""
    source, classes = scans()
    pool, held_out = split(seed)
    images, targets = [], []
    for block in range(-(-count // BLOCK)):
        drawn = compose.draw(_stream(seed, half, block), BLOCK, pool if half == TRAIN else held_out, pool)
        images.append(compose.compose(source, drawn))
        targets.append(torch.from_numpy(classes[drawn.scan]))
    return torch.cat(images)[:count], torch.cat(targets)[:count]


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _check(**arguments: tuple[int, int, int | None]) -> None:
    for name, (value, least, most) in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"expected {name} to be an int, got {value!r}, try {name}={least}")
        if value < least:
            raise ValueError(f"expected {name} >= {least}, got {value}, try {name}={least}")
        if most is not None and value > most:
            raise ValueError(f"expected {name} <= {most}, got {value}, try {name}={most}")
