"""Recipes that were found to pay, one TOML file each; its comment says where that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spfde._names import unknown
from spfde.train.recipe import toml

_FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
NAMES = tuple(_FILES)


def read(name: str) -> dict[str, Any]:
    """Return the fields that a preset sets.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in _FILES:
        raise unknown("a preset", name, NAMES)
    return toml.read(_FILES[name])
