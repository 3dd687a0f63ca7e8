"""Data sets of numpy arrays in a directory, mapped into memory: what is not read costs nothing.

The directory holds train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spfde.data.datasets import DataSets, Images, Normalise, Pixels, positions, warn_of_constant

REFERENCE = 1000  # training images, evenly spaced, whose mean and deviation normalise everything
FEW_CLASSES, MOST_CLASSES = 1000, 10  # never too many; and for each training image
CHANNELS = (1, 3, 4)  # of images whose channels come last


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
    if classes > max(FEW_CLASSES, MOST_CLASSES * len(labels["train"])):
        raise ValueError(
            f"expected classes that count from 0 without large gaps in {root / 'train_labels.npy'}, got the label"
            f" {classes - 1} for {len(labels['train'])} images, try np.unique(labels, return_inverse=True)[1]"
        )
    if int(labels["test"].max()) >= classes:
        raise ValueError(
            f"expected labels in [0, {classes}), those of training, in {root / 'test_labels.npy'}, got"
            f" {int(labels['test'].max())}, try a training set that has every class"
        )
    raw = images["train"].dtype == np.uint8
    sample = positions("sample", min(REFERENCE, len(images["train"])), len(images["train"]))
    normalise = Normalise.of(images["train"][sample]) if raw else None
    warn_of_constant(str(root), images["train"][sample], labels["train"])
    halves = {}
    for half, wanted in (("train", train), ("test", test)):
        chosen = positions(half, wanted, len(images[half]))
        pixels = images[half] if wanted is None else images[half][chosen]
        values = torch.from_numpy(pixels), torch.from_numpy(labels[half][chosen])
        halves[half] = Images(*values) if normalise is None else Pixels(*values, normalise)
    return DataSets("arrays", halves["train"], halves["test"], classes, images["train"].shape[1:])


def _map(path: Path) -> np.ndarray:
    if path.exists() and not path.is_file():  # to open a FIFO would wait for its writer
        raise ValueError(f"expected a numpy array in {path}, got no regular file, try numpy.save")
    try:
        # "c" maps copy-on-write: torch wants memory that it may write, the file must stay.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"expected an array in {path}, got no such file, try numpy.save") from error
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected a numpy array in {path}, got an error ({reason}), try numpy.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"expected a numpy array in {path}, got an .npz archive, try numpy.save of one of its arrays")
    return array


def _images(path: Path) -> np.ndarray:
    images = _map(path)
    got = f"expected uint8 or float32 images [N, C, H, W] in {path}, got {images.dtype} {list(images.shape)}"
    if images.ndim != 4:
        raise ValueError(f"{got}, try images[:, None] if the channel is missing")
    if 0 in images.shape:
        raise ValueError(f"{got}, try one image or more")
    _, channels, height, width = images.shape
    if width in CHANNELS and min(channels, height) > max(CHANNELS):
        raise ValueError(f"{got}, whose channels come last, try images.transpose(0, 3, 1, 2)")
    if images.dtype not in (np.uint8, np.float32):
        scaled = "images" if images.dtype.kind == "f" else "(images / images.max())"
        raise ValueError(f"{got}, try {scaled}.astype('float32')")
    return images


def _labels(path: Path, count: int) -> np.ndarray:
    labels = _map(path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        if labels.ndim != 1:
            advice = "labels.reshape(-1), or labels.argmax(1)"
        else:
            advice = "labels.astype('int64')" if len(labels) == count else "images and labels of the same samples"
        raise ValueError(
            f"expected {count} integer labels [N] in {path}, one for each image, got {labels.dtype}"
            f" {list(labels.shape)}, try {advice}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise ValueError(f"expected labels >= 0 in {path}, got {lowest}, try classes that count from 0")
    if highest > np.iinfo(np.int64).max:
        raise ValueError(f"expected labels below 2**63 in {path}, got {highest}, try classes that count from 0")
    return labels.astype(np.int64)


def _check_pair(root: Path, train: np.ndarray, test: np.ndarray) -> None:
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"expected test images like the training images in {root}, {train.dtype} {list(train.shape[1:])}, got"
            f" {test.dtype} {list(test.shape[1:])}, try saving both alike"
        )
