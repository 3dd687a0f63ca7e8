"""Recipes as TOML: the same fields, the same names, one per line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from spfde.train.recipe.recipe import Recipe, require_fields


def read(path: Path) -> dict[str, Any]:
    """Return the fields that a TOML file sets; their values are for `Recipe` to check.

    Raises:
        ValueError: the file cannot be read, is no TOML, or sets what is no field of a recipe.
        ImportError: before Python 3.11, tomli is not installed.
    """
    try:
        values = _parser().loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected a recipe in {path}, got {error.strerror}, try the path of a TOML file") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected TOML in {path}, got an error ({reason}), try lines like: epochs = 10") from error
    require_fields(values, str(path))
    return values


def _parser() -> ModuleType:
    if sys.version_info >= (3, 11):
        import tomllib as parser
    else:
        try:
            import tomli as parser
        except ImportError as error:
            raise ImportError(
                "expected tomli, which reads recipe files before Python 3.11, got no such module, try pip install tomli"
            ) from error
    return parser


def text(recipe: Recipe) -> str:
    """Write a recipe as TOML that `read` takes back.

    A field without a value is left out, TOML has no word for None; a path that is not UTF-8 becomes a comment.
    """
    return "".join(_line(name, v) for name, v in recipe.to_dict().items() if v not in (None, {}))


def _line(name: str, value: Any) -> str:
    line = f"{name} = {_value(value)}\n"
    shown = line.encode(errors="backslashreplace").decode()
    return line if shown == line else f"# not UTF-8: {shown}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(name)} = {_value(v)}' for name, v in value.items())} }}"
    # JSON's strings and booleans are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
