"""Real text that every machine has: the source files of Python's standard library, byte by byte."""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from spfde.data.datasets import DataSets, Sequences, positions

BYTES = 256
TEST = 10  # one file of so many is a test file
# Installed beside the library, not with every Python, or tables that are much alike.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "distutils", "tkinter", "turtledemo"}
    | {"ensurepip", "venv", "encodings", "pydoc_data"}
)


def load(train: int | None = None, test: int | None = None, context: int = 128) -> DataSets:
    """Cut the library's files into sequences of bytes, each with the sequence one byte later as its targets.

    Files are taken by path, and one of ten, by a hash of its path, is a test file: the same split on every machine,
    of the text that its Python has. Within a half files follow one another, a zero byte between two, and every byte but
    the first is predicted once; what does not fill a sequence at the end is left out.

    Args:
        train: number of training sequences, evenly spaced in the text (all).
        test: number of test sequences, evenly spaced in the text (all).
        context: bytes of a sequence.

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, or this Python has no sources.
    """
    if not isinstance(context, int) or isinstance(context, bool):
        raise TypeError(f"expected context to be an int, got {context!r}, try context=128")
    if context < 1:
        raise ValueError(f"expected context >= 1, got {context}, try context=128")
    root = Path(sysconfig.get_path("stdlib"))
    halves = split(root)
    if not all(halves):
        raise ValueError(
            f"expected source files of Python's standard library in {root}, got"
            f" {sum(map(len, halves))}, try a Python that is installed with them"
        )
    texts = [b"\0".join((root / path).read_bytes() for path in half) for half in halves]
    for text in texts:
        if len(text) <= context:
            raise ValueError(f"expected context < {len(text)}, the bytes there are, got {context}, try context=128")
    return DataSets(
        name="stdlib",
        train=Sequences(cut(texts[0], "train", train, context)),
        test=Sequences(cut(texts[1], "test", test, context)),
        num_classes=BYTES,
        shape=(context,),
    )


def split(root: Path) -> tuple[list[PurePath], list[PurePath]]:
    """Training and test files below `root`, relative to it and in the order of their paths."""
    halves: tuple[list[PurePath], list[PurePath]] = ([], [])
    for path in sorted(_sources(root, root)):
        halves[zlib.crc32(path.encode()) % TEST == 0].append(PurePath(path))
    return halves


def _sources(root: Path, folder: Path) -> Iterator[str]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in LEFT_OUT or path.name.startswith(("config-", "_sysconfigdata")):
            continue  # not looked into: site-packages may be large
        if path.is_dir():
            yield from _sources(root, path)
        elif path.suffix == ".py":
            yield path.relative_to(root).as_posix()


def cut(text: bytes, half: str, wanted: int | None, context: int) -> Tensor:
    """The wanted sequences of a text, uint8 [n, context + 1]; each begins with the last byte of the one before."""
    values = np.frombuffer(text, np.uint8)
    chosen = positions(half, wanted, (len(values) - 1) // context)
    return torch.from_numpy(values[chosen[:, None] * context + np.arange(context + 1)])
