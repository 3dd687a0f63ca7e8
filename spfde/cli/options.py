"""Options of commands: help that names a default, and a refusal of what would be ignored."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape


def option(text: str, *default: object, **limits: Any) -> Any:
    """An option whose help names its default; None stays what it is, to tell whether it was given."""
    shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in default)
    return typer.Option(help=f"{text} {escape(f'[default: {shown}]')}", **limits)  # else rich takes it for a style


def refuse(where: str, instead: str, **options: Any) -> None:
    """Raises ValueError if one of the options was given; a flag is given where it is True."""
    for name in [name for name, value in options.items() if value is not None and value is not False]:
        given = options[name] if isinstance(options[name], list) else [options[name]]
        flag = f"--{name.replace('_', '-')}"
        got = " ".join(flag if value is True else f"{flag} {value}" for value in given)
        raise ValueError(f"expected {flag} only {where}, got {got}, try {instead}")
