"""Data sets: `load(name)` returns the train and test halves of one that is here already, or of a local directory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from spfde._names import unknown
from spfde.data import arrays, cifar, digits, folder, idx, stdlib
from spfde.data.augment import CropFlip
from spfde.data.datasets import DataSets, Images, Pixels, Sequences
from spfde.data.folder import UnreadableImage

__all__ = ["DATASETS", "CropFlip", "DataSets", "Images", "Pixels", "Sequences", "UnreadableImage", "load"]

DATASETS: Mapping[str, Callable[..., DataSets]] = {
    "digits": digits.load,
    "cifar10": cifar.load10,
    "cifar100": cifar.load100,
    "idx": idx.load,
    "folder": folder.load,
    "arrays": arrays.load,
    "stdlib": stdlib.load,
}


def load(name: str, **options: Any) -> DataSets:
    """Load the data set called `name`; `options` are those of its loader, such as `train=8000` of "digits".

    Raises:
        ValueError: the name, an option or an option's value is not a known one, an option that the data set needs
            is missing, or what the directory holds is not the data set.
        TypeError: an option's value has the wrong type.
    """
    if name not in DATASETS:
        raise unknown("a data set", name, DATASETS)
    loader = DATASETS[name]
    known = inspect.signature(loader).parameters
    for option in options:
        if option not in known:
            others = [other for other, each in DATASETS.items() if option in inspect.signature(each).parameters]
            if others:
                raise ValueError(
                    f"expected no {option} with the data set {name!r}, got {options[option]!r},"
                    f" try leaving it out, or the data set {' or '.join(others)}"
                )
            raise unknown(f"an option of {name!r}", option, known)
    for option in known.values():
        if option.default is option.empty and option.name not in options:
            raise ValueError(f"expected {option.name} with the data set {name!r}, got none, try {option.name}=...")
    return loader(**options)
