"""Errors for a name that is not one of the known ones, with the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """ValueError reading "expected <what> to be one of ..., got ..., try <the nearest>"."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f", try {near[0]!r}" if near else f", try {names[0]!r}" if names else ""
    return ValueError(f"expected {what} to be one of {', '.join(names)}, got {name!r}{hint}")
