"""The options that a topology method has of its own: declared in its class body, checked and shown from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from math import isfinite
from typing import Any

from spfde._names import unknown


@dataclass(frozen=True)
class Option:
    """One option of a method.

    default: its value where none is given; None: the method chooses, as `help` says. within: the interval of a number,
    such as "(0, 1]" or "[0, inf)", or the names that a text may be; None: a bool. help: what it means, and its unit.
    """

    default: Any
    within: str | tuple[str, ...] | None
    help: str

    @property
    def kind(self) -> type:
        """bool, int, float or str; one whose default is None also takes None."""
        return float if self.default is None else type(self.default)

    @property
    def annotation(self) -> Any:
        """The type of its values."""
        return self.kind if self.default is not None else self.kind | None

    def check(self, name: str, value: Any) -> Any:
        """The value, as the method sees it.

        Raises:
            ValueError: it is of another kind, or out of range.
        """
        if value is None and self.default is None:
            return None
        if isinstance(self.within, tuple):
            if value not in self.within:
                raise unknown(name, value, self.within)
        elif self.within is None:
            if not isinstance(value, bool):
                raise ValueError(f"expected {name} to be True or False, got {value!r} ({self.help})")
        else:
            number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
            if not (number and isfinite(value) and _inside(value, self.within)):
                what = f"{name}, an integer," if self.kind is int else name
                raise ValueError(f"expected {what} in {self.within}, got {value!r} ({self.help})")
        return value

    def __str__(self) -> str:
        where = "" if self.within is None else f", in {self.within}" if isinstance(self.within, str) else ""
        return f"{self.help}{where}; {self.default!r} by default"


def option(default: Any, within: str | tuple[str, ...] | None, help: str) -> Any:
    """Declares an option in the body of a method: `end: float = option(0.75, "(0, 1]", "share of the training")`."""
    return Option(default, within, help)


def options_of(method: type) -> dict[str, Option]:
    """The options of a method by name, inherited ones first; a subclass drops one by giving it a plain value."""
    names = dict.fromkeys(name for base in reversed(method.__mro__) for name in vars(base))
    return {name: value for name in names if isinstance(value := getattr(method, name, None), Option)}


def checked(method: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every option of a method.

    Raises:
        ValueError: a given one is out of range, or of another method.
    """
    options = options_of(method)
    for name in given:
        if name not in options:
            raise unknown(f"an option of {method.__name__}", name, options)
    return {name: one.check(name, given.get(name, one.default)) for name, one in options.items()}


def signature_with(frame: Signature, method: type, defaults: Mapping[str, Any]) -> Signature:
    """`frame`, without its `**` and with a method's own defaults and options, for inspect and help().

    defaults: of the frame's parameters; a parameter that the method refuses is left out by the default `...`.
    """
    shared = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in frame.parameters.values()
        if parameter.kind is not Parameter.VAR_KEYWORD and defaults.get(parameter.name) is not ...
    ]
    own = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for name, one in options_of(method).items()
    ]
    return Signature([*shared, *own])


def documented(text: str | None, method: type) -> str:
    """A method's docstring with a line for each of its options."""
    lines = [f"        {name}: {one}." for name, one in options_of(method).items()]
    return "\n\n    ".join([(text or "").rstrip(), "Options:\n" + "\n".join(lines)]) if lines else text or ""


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value > low or (interval[0] == "[" and value == low)
    return above and (value < high or (interval[-1] == "]" and value == high))
