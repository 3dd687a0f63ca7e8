"""Names: errors for one that is not known, with the nearest known one, and how one is shown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import category


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """ValueError reading "expected <what> to be one of ..., got ..., try <the nearest>"."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f", try {near[0]!r}" if near else f", try {names[0]!r}" if names else ""
    return ValueError(f"expected {what} to be one of {', '.join(names)}, got {name!r}{hint}")


STEERING = ("Cc", "Cf", "Cs")  # Unicode's controls, formats (right to left) and surrogates
JOINERS = "\n\t\u200c\u200d"  # breaks, and what writing systems join letters and emoji by


def printable(text: str) -> str:
    r"""Text with its control characters as escapes (\x1b, \u202e): a name must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(_escaped(each) if category(each) in STEERING and each not in JOINERS else each for each in text)


def _escaped(each: str) -> str:
    return each.encode("unicode_escape").decode()
