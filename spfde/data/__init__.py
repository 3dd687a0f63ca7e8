"""Data sets: `load(name)` returns the train and test halves of an embedded one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from spfde._names import unknown
from spfde.data import digits
from spfde.data.datasets import DataSets, Images

__all__ = ["DATASETS", "DataSets", "Images", "load"]

DATASETS: Mapping[str, Callable[..., DataSets]] = {"digits": digits.load}


def load(name: str, **options: Any) -> DataSets:
    """Load the data set called `name`; `options` are those of its loader, such as `train=8000` of "digits".

    Raises:
        ValueError: the name, an option or an option's value is not a known one.
        TypeError: an option's value has the wrong type.
    """
    if name not in DATASETS:
        raise unknown("a data set", name, DATASETS)
    loader = DATASETS[name]
    known = inspect.signature(loader).parameters
    for option in options:
        if option not in known:
            raise unknown(f"an option of {name!r}", option, known)
    return loader(**options)
