"""Image folders: a directory for each class, its name the class, under train/ and test/ (or val/)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spfde.data.datasets import DataSets, Normalise, positions, warn_of_constant

REFERENCE = 256  # training images, evenly spaced, whose mean and deviation normalise everything
NAMED = 3  # files that a warning names
STRAY = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})  # left by unpackers and file managers
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode "I" is 16 bits; elsewhere it has 32


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
    It is turned as its EXIF tag says; 16 bits become 8, floats are in [0, 1], transparency is left out, and of an
    animation the first frame is taken. Classes are the folders of train/ by name, and links to folders are followed.
    What begins with a dot, __MACOSX, Thumbs.db and desktop.ini are passed over; every other file is an image.

    Args:
        data_dir: the directory.
        train: number of training images, evenly spaced by path (all).
        test: number of test images, evenly spaced by path (all).
        image_size: side of the images in pixels.
        bad_images: "raise" stops at the first file that cannot be decoded, when it is fetched; "skip" decodes every
            file first, leaves those out and warns with their number and names.

    Raises:
        TypeError: a number is not an int.
        ValueError: an option is out of range, a folder is missing or empty, links go round, or a class of test/ is
            not in train/.
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
    _require_images(folders["train"], classes, files["train"])
    chosen = {
        half: [files[half][i] for i in positions(half, wanted, len(files[half]))]
        for half, wanted in (("train", train), ("test", test))
    }
    if bad_images == "skip":
        chosen = {half: _readable(folders[half], entries) for half, entries in chosen.items()}
    sample = positions("sample", min(REFERENCE, len(chosen["train"])), len(chosen["train"]))
    images = np.stack([decode(chosen["train"][i][0], image_size) for i in sample])
    normalise = Normalise.of(images)
    warn_of_constant(str(root), images, np.array([target for _, target in chosen["train"]]))
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
        if path.exists() and not path.is_file():  # to open a FIFO would wait for its writer
            raise ValueError("no regular file")
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(_rgb(upright, image.format), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders raise whatever their format's code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(
            f"expected an image in {path}, got a file that cannot be decoded ({reason}),"
            " try replacing it, or bad_images='skip'"
        ) from error
    return np.asarray(square).transpose(2, 0, 1).copy()


def _rgb(image: Any, kind: str | None) -> Any:
    """Return a Pillow image as RGB of 8 bits; Pillow alone would clip deeper ones to white or black."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in SIXTEEN_BITS):
        return _grey((np.asarray(image).astype(np.int64) + 128) // 257)
    if image.mode == "I":
        raise ValueError("32-bit integers, whose range is not known: save 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise ValueError(f"floats in [{values.min():g}, {values.max():g}], not in [0, 1]")
        return _grey(np.rint(values * 255))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey(levels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name in STRAY


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(
            f"expected a folder {folder} with a folder for each class, got none, try train/<class>/<image> and"
            " test/<class>/<image>"
        )
    return sorted(path for path in folder.iterdir() if not _passed_over(path.name))


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    files = []
    for entry in _below(folder):
        if not entry.is_dir() or entry.name not in classes:
            what = "a class that train has not" if entry.is_dir() else "a file"
            raise ValueError(
                f"expected only class folders in {folder} ({len(classes)} in train), got {what}, {entry.name!r},"
                " try moving it away"
            )
        files += [(path, classes.index(entry.name)) for path in sorted(_walk(entry))]
    if not files:
        raise ValueError(f"expected images in the class folders of {folder}, got none, try {folder}/<class>/<image>")
    return files


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield all but folders, dangling links too: a file that is passed over in silence is lost."""
    here = folder.resolve()
    if here in above:
        raise ValueError(f"expected folders that end, got a link back to {here} in {folder}, try removing it")
    for name in os.listdir(folder):
        path = folder / name
        if _passed_over(name):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        else:
            yield path


def _require_images(folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> None:
    seen = {target for _, target in files}
    empty = [name for number, name in enumerate(classes) if number not in seen]
    if empty:
        raise ValueError(
            f"expected images in every class folder of {folder}, got none in {', '.join(map(repr, empty[:NAMED]))}"
            f" ({len(empty)} of {len(classes)}), try removing what is no class"
        )


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
