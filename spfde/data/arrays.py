"""Data sets of numpy arrays in a directory, mapped into memory: what is not read costs nothing.

The directory holds train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spfde.data.datasets import DataSets, Images, Normalise, Pixels, positions

REFERENCE = 1000  # training images, evenly spaced, whose mean and deviation normalise everything


def load(data_dir: str, train: int | None = None, test: int | None = None) -> DataSets:
    """Map the arrays of a directory: images [N, C, H, W], labels [N] of any integer type.

    uint8 images are normalised per channel when a batch is fetched; float32 ones are taken as they are. Classes are
    0 to the largest training label.

    Args:
        data_dir: the directory.
        train: number of training images, evenly spaced (all).
        test: number of test images, evenly spaced (all).

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, or an array is missing, unreadable, or of another shape or type.
    """
    root = Path(data_dir)
    images = {half: _images(root / f"{half}_images.npy") for half in ("train", "test")}
    labels = {half: _labels(root / f"{half}_labels.npy", len(images[half])) for half in ("train", "test")}
    _check_pair(root, images["train"], images["test"])
    classes = int(labels["train"].max()) + 1
    if int(labels["test"].max()) >= classes:
        raise ValueError(
            f"expected labels in [0, {classes}), those of training, in {root / 'test_labels.npy'}, got"
            f" {int(labels['test'].max())}, try a training set that has every class"
        )
    raw = images["train"].dtype == np.uint8
    sample = positions("sample", min(REFERENCE, len(images["train"])), len(images["train"]))
    normalise = Normalise.of(images["train"][sample]) if raw else None
    halves = {}
    for half, wanted in (("train", train), ("test", test)):
        chosen = positions(half, wanted, len(images[half]))
        pixels = images[half] if wanted is None else images[half][chosen]
        values = torch.from_numpy(pixels), torch.from_numpy(labels[half][chosen])
        halves[half] = Images(*values) if normalise is None else Pixels(*values, normalise)
    return DataSets("arrays", halves["train"], halves["test"], classes, images["train"].shape[1:])


def _map(path: Path) -> np.ndarray:
    try:
        # "c" maps copy-on-write: torch wants memory that it may write, the file must stay.
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"expected an array in {path}, got no such file, try numpy.save") from error
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected a numpy array in {path}, got an error ({reason}), try numpy.save") from error


def _images(path: Path) -> np.ndarray:
    images = _map(path)
    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"expected uint8 or float32 images [N, C, H, W] in {path}, got {images.dtype} {list(images.shape)},"
            " try images.transpose(0, 3, 1, 2) if the channels come last"
        )
    return images


def _labels(path: Path, count: int) -> np.ndarray:
    labels = _map(path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"expected {count} integer labels [N] in {path}, one for each image, got {labels.dtype}"
            f" {list(labels.shape)}, try labels.astype('int64')"
        )
    if labels.min() < 0:
        raise ValueError(f"expected labels >= 0 in {path}, got {labels.min()}, try classes that count from 0")
    return labels.astype(np.int64)


def _check_pair(root: Path, train: np.ndarray, test: np.ndarray) -> None:
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"expected test images like the training images in {root}, {train.dtype} {list(train.shape[1:])}, got"
            f" {test.dtype} {list(test.shape[1:])}, try saving both alike"
        )
