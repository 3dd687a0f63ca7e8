"""Image folders: a directory for each class, its name the class, under train/ and test/ (or val/)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spfde.data.datasets import DataSets, Normalise, positions

REFERENCE = 256  # training images, evenly spaced, whose mean and deviation normalise everything
NAMED = 3  # files that a warning names


class UnreadableImage(ValueError):
    """An image file that cannot be decoded; the message names it."""


class Folder(Dataset):
    """Image files, decoded when fetched: items are (image float32 [3, S, S], int)."""

    def __init__(self, files: Sequence[tuple[Path, int]], size: int, normalise: Normalise) -> None:
        self.files, self.size, self.normalise = tuple(files), size, normalise

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, target = self.files[index]
        return self.normalise(torch.from_numpy(decode(path, self.size))), target


def load(
    data_dir: str,
    train: int | None = None,
    test: int | None = None,
    image_size: int = 32,
    bad_images: str = "raise",
) -> DataSets:
    """List the images of data_dir/train/<class>/ and data_dir/test/<class>/ (or val/), with all that lies below.

    An image is decoded to RGB, scaled so that its shorter side is `image_size`, and cut to the centre square.
    Classes are the folders of train/ by name. Files and folders whose name begins with a dot are passed over; every
    other file is an image.

    Args:
        data_dir: the directory.
        train: number of training images, evenly spaced by path (all).
        test: number of test images, evenly spaced by path (all).
        image_size: side of the images in pixels.
        bad_images: "raise" stops at the first file that cannot be decoded, when it is fetched; "skip" decodes every
            file first, leaves those out and warns with their number and names.

    Raises:
        TypeError: a number is not an int.
        ValueError: an option is out of range, a folder is missing or empty, or a class of test/ is not in train/.
        UnreadableImage: an image that is needed now cannot be decoded.
        ImportError: Pillow is missing.
    """
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 1:
        raise ValueError(f"expected image_size to be an integer >= 1, got {image_size!r}, try image_size=32")
    if bad_images not in ("raise", "skip"):
        raise ValueError(f"expected bad_images to be one of raise, skip, got {bad_images!r}, try 'raise'")
    root = Path(data_dir)
    folders = {"train": root / "train", "test": root / ("test" if (root / "test").is_dir() else "val")}
    classes = [path.name for path in _below(folders["train"]) if path.is_dir()]
    files = {half: _files(folder, classes) for half, folder in folders.items()}
    chosen = {
        half: [files[half][i] for i in positions(half, wanted, len(files[half]))]
        for half, wanted in (("train", train), ("test", test))
    }
    if bad_images == "skip":
        chosen = {half: _readable(folders[half], entries) for half, entries in chosen.items()}
    sample = positions("sample", min(REFERENCE, len(chosen["train"])), len(chosen["train"]))
    normalise = Normalise.of(np.stack([decode(chosen["train"][i][0], image_size) for i in sample]))
    halves = [Folder(chosen[half], image_size, normalise) for half in ("train", "test")]
    return DataSets("folder", *halves, num_classes=len(classes), shape=(3, image_size, image_size))


def decode(path: Path, size: int) -> np.ndarray:
    """Decode an image file: uint8 [3, size, size], the centre square of the scaled image.

    Raises:
        UnreadableImage: it cannot be decoded.
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            "expected Pillow, which decodes images, got no such module, try pip install pillow"
        ) from error
    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders raise whatever their format's code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(
            f"expected an image in {path}, got a file that cannot be decoded ({reason}),"
            " try replacing it, or bad_images='skip'"
        ) from error
    return np.asarray(square).transpose(2, 0, 1).copy()


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(
            f"expected a folder {folder} with a folder for each class, got none, try train/<class>/<image> and"
            " test/<class>/<image>"
        )
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    files = []
    for entry in _below(folder):
        if not entry.is_dir() or entry.name not in classes:
            what = "a class that train has not" if entry.is_dir() else "a file"
            raise ValueError(
                f"expected only class folders in {folder} ({len(classes)} in train), got {what}, {entry.name!r},"
                " try moving it away"
            )
        below = sorted(path for path in entry.rglob("*") if path.is_file())
        kept = [p for p in below if not any(part.startswith(".") for part in p.relative_to(entry).parts)]
        files += [(path, classes.index(entry.name)) for path in kept]
    if not files:
        raise ValueError(f"expected images in the class folders of {folder}, got none, try {folder}/<class>/<image>")
    return files


def _readable(folder: Path, files: Sequence[tuple[Path, int]]) -> list[tuple[Path, int]]:
    kept, bad = [], []
    for path, target in files:
        try:
            decode(path, 1)
            kept.append((path, target))
        except UnreadableImage:
            bad.append(str(path.relative_to(folder)))
    if not kept:
        raise ValueError(f"expected images in {folder}, got none that can be decoded, try other files")
    if bad:
        named = ", ".join(bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
        warnings.warn(f"left out {len(bad)} of {len(files)} files in {folder} (not decodable): {named}", stacklevel=4)
    return kept
