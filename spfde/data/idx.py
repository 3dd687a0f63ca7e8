"""IDX files, the format of MNIST: also Fashion-MNIST's, KMNIST's and EMNIST's.

A file is two zero bytes, the type of its values, the number of its dimensions, each dimension in 4 bytes (big-endian),
then the values (LeCun, Cortes and Burges, "The MNIST database"). Files are read as bytes and checked before use.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from spfde.data.datasets import DataSets, Normalise, Pixels, positions, warn_of_constant

REFERENCE = 1000  # training images, evenly spaced, whose mean and deviation normalise everything
HALVES = {"train": ("train",), "test": ("t10k", "test")}  # how file names begin: EMNIST's second half is "test"
BYTES = 0x08  # the type of unsigned bytes
GZIP = b"\x1f\x8b"
MOST_DEFLATED = 1032  # bytes that one compressed byte can stand for


def load(data_dir: str, train: int | None = None, test: int | None = None) -> DataSets:
    """Load the four files of an MNIST: images [1, H, W] normalised per channel when fetched, labels of each.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k- (or test-), with or without .gz;
    what is compressed is known by its first bytes. Classes are the training labels; labels that count from 1 (EMNIST's
    letters) are moved to 0.

    Args:
        data_dir: the directory; or, where file names begin with the name of one set of several, the path up to
            there: gzip/emnist-letters for gzip/emnist-letters-train-images-idx3-ubyte.gz.
        train: number of training images, evenly spaced in the file (all).
        test: number of test images, evenly spaced in the file (all).

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, or a file is missing, cut short, no IDX file of bytes, or does not fit
            the others.
    """
    root = Path(data_dir)
    files = {
        (half, kind): _find(root, half, kind, dimensions)
        for half in HALVES
        for kind, dimensions in (("images", 3), ("labels", 1))
    }
    images = {half: read(files[half, "images"], 3)[:, None] for half in HALVES}
    labels = {half: read(files[half, "labels"], 1) for half in HALVES}
    for half in HALVES:
        if len(images[half]) != len(labels[half]):
            raise ValueError(
                f"expected a label for each of the {len(images[half])} images in {files[half, 'labels']},"
                f" got {len(labels[half])}, try the two files of one set"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise ValueError(
            f"expected images of {_size(images['train'])} pixels, those of training, in {files['test', 'images']},"
            f" got {_size(images['test'])}, try the files of one set"
        )
    first, classes = _classes(labels["train"], labels["test"], files)
    sample = positions("sample", min(REFERENCE, len(images["train"])), len(images["train"]))
    normalise = Normalise.of(images["train"][sample])
    warn_of_constant(str(root), images["train"][sample], labels["train"])
    halves = {}
    for half, wanted in (("train", train), ("test", test)):
        chosen = positions(half, wanted, len(images[half]))
        pixels = images[half] if wanted is None else images[half][chosen]
        targets = labels[half][chosen].astype(np.int64) - first
        halves[half] = Pixels(torch.from_numpy(pixels), torch.from_numpy(targets), normalise)
    return DataSets("idx", halves["train"], halves["test"], classes, images["train"].shape[1:])


def read(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes, compressed or not: uint8 of that many dimensions.

    Raises:
        ValueError: it is no such file, or has not the size that it says.
    """
    if not path.is_file():  # to open a FIFO would wait for its writer
        raise ValueError(f"expected an IDX file in {path}, got no regular file, try the set's own file")
    header = 4 + 4 * dimensions
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == GZIP
        with gzip.open(path) if packed else open(path, "rb") as file:
            start = file.read(header)
            shape = _shape(path, start, dimensions)
            count = int(np.prod(shape, dtype=object))
            # No header makes memory be asked for that the file cannot fill.
            most = path.stat().st_size * (MOST_DEFLATED if packed else 1)
            values = file.read(min(count, most) + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected an IDX file in {path}, got an error ({reason}), try getting it again") from error
    if len(values) != count:
        got = "more" if len(values) > count else "fewer"
        raise ValueError(
            f"expected {count} values after the header of {path}, its {' x '.join(map(str, shape))}, got {got},"
            " try getting it again"
        )
    return np.frombuffer(bytearray(values), np.uint8).reshape(shape)


def _shape(path: Path, start: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes((0, 0, BYTES, dimensions))
    if start[:4] != magic or len(start) != 4 + 4 * dimensions:
        raise ValueError(
            f"expected an IDX file of bytes in {dimensions} dimensions, which starts with {magic.hex(' ')}, in {path},"
            f" got {start[:4].hex(' ') or 'nothing'}, try the set's own file"
        )
    shape = tuple(np.frombuffer(start, ">u4", offset=4).tolist())
    if 0 in shape:
        raise ValueError(f"expected values in {path}, got {' x '.join(map(str, shape))}, try the set's own file")
    return shape


def _find(root: Path, half: str, kind: str, dimensions: int) -> Path:
    names = [
        f"{start}-{kind}{mark}idx{dimensions}-ubyte{end}"
        for start in HALVES[half]
        for mark in ("-", ".")
        for end in ("", ".gz")
    ]
    paths = [root / name if root.is_dir() else root.with_name(f"{root.name}-{name}") for name in names]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise ValueError(
            f"expected a file {paths[0]} (or .gz), got none, try the directory that holds it, or the path up to"
            f" -{names[0]}"
        )
    return found


def _size(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape[2:]))


def _classes(train: np.ndarray, test: np.ndarray, files: dict[tuple[str, str], Path]) -> tuple[int, int]:
    """Return the first label and the number of classes."""
    counts = np.bincount(train)
    first = int(counts[0] == 0)
    missing = first + np.flatnonzero(counts[first:] == 0)
    if len(missing):
        raise ValueError(
            f"expected training labels from 0 or 1 to {len(counts) - 1} without a gap in {files['train', 'labels']},"
            f" got none that is {missing[0]}, try the set's own file"
        )
    if not first <= test.min() <= test.max() < len(counts):
        wrong = int(test.min() if test.min() < first else test.max())
        raise ValueError(
            f"expected labels in [{first}, {len(counts)}), those of training, in {files['test', 'labels']},"
            f" got {wrong}, try the files of one set"
        )
    return first, len(counts) - first
