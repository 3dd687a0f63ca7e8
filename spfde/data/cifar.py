"""CIFAR-10 and CIFAR-100 from a local directory, in their official binary version.

A record is its label bytes, then 3 planes of 32x32 bytes (red, green, blue). Files are read as bytes and checked
before use; the pickled "python version" is never opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spfde.data.datasets import DataSets, Normalise, Pixels, positions

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """A data set's files: which hold training and test records, how many each, and what their labels count.

    `labels` has the number of classes for each label byte of a record; the last one is the class.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_records: int
    test_records: int
    labels: tuple[int, ...]
    normalise: Normalise


CIFAR10 = Version(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    train_records=10_000,
    test_records=10_000,
    labels=(10,),
    normalise=Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
)
CIFAR100 = Version(
    name="cifar100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    train_records=50_000,
    test_records=10_000,
    labels=(20, 100),
    normalise=Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)


def load10(data_dir: str, train: int | None = None, test: int | None = None) -> DataSets:
    """Load CIFAR-10: 10 classes, images [3, 32, 32], normalised with the training set's statistics.

    Args:
        data_dir: the folder cifar-10-batches-bin, or the one it lies in.
        train: number of training images, evenly spaced in the files (all 50,000).
        test: number of test images (all 10,000).

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, or a file is missing, has another size, or a label out of range.
    """
    return load(CIFAR10, data_dir, train, test)


def load100(data_dir: str, train: int | None = None, test: int | None = None) -> DataSets:
    """Load CIFAR-100 with its 100 fine classes; everything else is as for CIFAR-10, the folder cifar-100-binary."""
    return load(CIFAR100, data_dir, train, test)


def load(version: Version, data_dir: str, train: int | None = None, test: int | None = None) -> DataSets:
    """Load a version of the data set from its directory."""
    root = Path(data_dir)
    root = root / version.folder if (root / version.folder).is_dir() else root
    for name in (*version.train, *version.test):  # every file, before the first is read
        _check_size(root / name, version, version.train_records if name in version.train else version.test_records)
    return DataSets(
        name=version.name,
        train=_half(root, version, version.train, "train", train),
        test=_half(root, version, version.test, "test", test),
        num_classes=version.labels[-1],
        shape=SHAPE,
    )


def _check_size(path: Path, version: Version, records: int) -> None:
    expected = records * (len(version.labels) + PIXELS)
    if not path.is_file():
        near = "the pickled python version" if path.with_suffix("").is_file() else "no such file"
        raise ValueError(
            f"expected {version.name}'s binary file {path}, got {near}, try the official binary version,"
            f" unpacked to {version.folder}"
        )
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"expected {path} to have {expected} bytes ({records} records), got {size}, try unpacking it again"
        )


def _half(root: Path, version: Version, names: tuple[str, ...], half: str, wanted: int | None) -> Pixels:
    parts = [_read(root / name, version) for name in names]
    chosen = positions(half, wanted, sum(len(targets) for _, targets in parts))
    images, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    kept = slice(None) if wanted is None else chosen  # a slice copies nothing
    return Pixels(images[kept], targets[kept], version.normalise)


def _read(path: Path, version: Version) -> tuple[Tensor, Tensor]:
    width = len(version.labels)
    records = np.fromfile(path, np.uint8).reshape(-1, width + PIXELS)
    for column, classes in enumerate(version.labels):
        wrong = np.flatnonzero(records[:, column] >= classes)
        if len(wrong):
            raise ValueError(
                f"expected labels in [0, {classes}) in {path}, got {records[wrong[0], column]} in record {wrong[0]},"
                " try unpacking it again"
            )
    images = torch.from_numpy(records[:, width:]).reshape(-1, *SHAPE)
    return images, torch.from_numpy(records[:, width - 1].astype(np.int64))
