"""Reads plain values into the dataclass that wrote them, and names what does not fit: the dataclass is the schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

WRITER = "try the version of spfde that wrote it"
_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a finite number"}


def to_plain(value: Any) -> dict[str, Any]:
    """A dataclass with the fields `format` and `version` as plain values for JSON, these two first."""
    values = asdict(value)
    return {"format": values.pop("format"), "version": values.pop("version"), **values}


def read(kind: type[T], path: str | Path, what: str, again: str) -> T:
    """The dataclass that `to_plain` made a JSON file of; its defaults of `format` and `version` are those expected.

    what, again: the file in words, and what to try for a new one.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is another one, of another version, or damaged; names the file and the key.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected {what} in {path}, got no JSON ({error}), try {again}") from error
    if not isinstance(values, dict) or values.get("format") != kind.format:  # type: ignore[attr-defined]
        raise ValueError(f"expected {what} in {path}, got another file, try {again}")
    if values.get("version") != kind.version:  # type: ignore[attr-defined]
        expected = f"version {kind.version} of {what} in {path}"  # type: ignore[attr-defined]
        raise ValueError(f"expected {expected}, got {values.get('version')!r}, {WRITER}")
    try:
        return build(kind, values, path)
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{error} ({path})") from error


def build(kind: type[T], values: Any, where: str | Path) -> T:
    """A value of a dataclass from an object's; fields with a default may be missing, keys of a later version are left.

    Raises:
        ValueError: a key is missing or has another type; names the place and the key.
    """
    return kind(**checked(kind, values, where, [item.name for item in fields(kind)]))


def checked(kind: type, values: Any, where: str | Path, names: list[str]) -> dict[str, Any]:
    """Some fields of a dataclass from an object's values, by name; see `build`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object in {where}, got {type(values).__name__}, {WRITER}")
    hints, known = get_type_hints(kind), {item.name: item for item in fields(kind)}
    missing = [name for name in names if name not in values and _required(known[name])]
    if missing:
        got = ", ".join(map(repr, values)) or "nothing"
        raise ValueError(f"expected {missing[0]!r} in {where}, got only {got}, {WRITER}")
    return {name: _value(hints[name], values[name], where, name) for name in names if name in values}


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _value(hint: Any, value: Any, where: str | Path, key: str) -> Any:
    """The value as a field's type has it: JSON's lists as tuples, objects as dataclasses."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return _value(next(arg for arg in args if arg is not NoneType), value, where, key)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return build(hint, value, f"{where}, {key}")
    if origin is tuple:
        _require(isinstance(value, list), key, where, "a list", value)
        return tuple(_value(args[0], item, where, key) for item in value)
    if origin is not None:
        _require(isinstance(value, dict), key, where, "an object", value)
        return {name: _value(args[1], item, f"{where}, {key}", name) for name, item in value.items()}
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = type(value) is hint
    _require(fits, key, where, _NAMES[hint], value)
    return value


def _require(fits: bool, key: str, where: str | Path, what: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"expected {key!r} in {where} to be {what}, got {value!r}, {WRITER}")
