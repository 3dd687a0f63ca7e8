"""What values a recipe's field takes."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from spfde.sparse.pattern import Pattern

LARGEST = 10**9  # more than any count of samples or epochs, and safe to multiply in 64 bits


@dataclass(frozen=True)
class Rule:
    """The values a field takes: `accepts` decides, `expected` says it in words, `names` are all of them, if few."""

    expected: str
    accepts: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def or_none(self) -> Rule:
        """Return the same rule with None allowed."""
        return Rule(f"{self.expected} or None", lambda v: v is None or self.accepts(v), self.names)

    def nearest(self, value: Any) -> str | None:
        """Return the name that a misspelt one may have meant."""
        near = get_close_matches(str(value), self.names, n=1, cutoff=0.5)
        return near[0] if near else None


def _is_real(value: object) -> bool:
    # Not math.isfinite: it raises for an integer that is too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def integer(low: int, high: int = LARGEST) -> Rule:
    """Return the rule of an integer in [low, high]."""
    top = "10**9" if high == LARGEST else high
    return Rule(
        f"an integer in [{low}, {top}]",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def real(expected: str, accepts: Callable[[float], bool]) -> Rule:
    """Return the rule of a finite number that `accepts` takes."""
    return Rule(expected, lambda v: _is_real(v) and accepts(v))


def one_of(*names: str) -> Rule:
    """Return the rule of a few names."""
    return Rule(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names, names)


def registered(registry: Mapping[str, Any], *others: str) -> Rule:
    """Return the rule of a registry's names, those that are added later too, and a few others."""
    names = (*registry, *others)
    return Rule(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and (v in registry or v in others), names)


def increasing(rule: Rule, expected: str) -> Rule:
    """Return the rule of a non-empty tuple of strictly increasing numbers that `rule` takes."""
    return Rule(
        expected,
        lambda v: (
            isinstance(v, tuple) and len(v) > 0 and all(map(rule.accepts, v)) and all(a < b for a, b in pairwise(v))
        ),
    )


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(Pattern.parse(value))
    except ValueError:
        return False


NAME = Rule("a name", lambda v: isinstance(v, str) and v != "")
PATH = Rule("a path", lambda v: isinstance(v, str) and v != "" and "\0" not in v)
PATTERN = Rule("'unstructured', 'block:RxC', 'n:m' with n < m, 'fan-in' or 'channel'", _is_pattern)
DEVICE = Rule(
    "'cpu', 'cuda' or 'cuda:N'", lambda v: isinstance(v, str) and bool(re.fullmatch(r"cpu|cuda(:\d{1,3})?", v))
)
OPTIONS = Rule(
    "a mapping of names to numbers, texts and flags",
    lambda v: (
        isinstance(v, Mapping)
        and all(isinstance(n, str) and (_is_real(o) or isinstance(o, str | bool)) for n, o in v.items())
    ),
)
FLAG = Rule("True or False", lambda v: isinstance(v, bool))
POSITIVE = real("a number in (0, 1e6]", lambda v: 0 < v <= 1e6)
NOT_NEGATIVE = real("a number in [0, 1e6]", lambda v: 0 <= v <= 1e6)
BELOW_ONE = real("a fraction in [0, 1)", lambda v: 0 <= v < 1)
FRACTION = real("a fraction in (0, 1]", lambda v: 0 < v <= 1)
INSIDE = real("a fraction in (0, 1)", lambda v: 0 < v < 1)


def check(name: str, rule: Rule, value: Any, default: Any) -> None:
    """Check the value of a field.

    Raises:
        ValueError: the rule does not accept it.
    """
    if rule.accepts(value):
        return
    near = rule.nearest(value)
    hint = repr(near) if near else "leaving it out" if default in (None, {}) else f"the default, {default!r}"
    raise ValueError(f"expected {name} to be {rule.expected}, got {reprlib.repr(value)}, try {hint}")
