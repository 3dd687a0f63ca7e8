"""A file of finished runs: what all of them share in its first line, then a JSON line for each, to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timing import command, machine


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, [] if there is none; a last one that was cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read(path: Path, setting: Any) -> list[dict[str, Any]]:
    """The lines after the first one, [] if there is no file. setting: a dataclass, of which the file must be.

    Raises:
        ValueError: it is of another setting.
    """
    head, *runs = lines(path) or [{"setting": asdict(setting)}]
    if asdict(type(setting)()) | head["setting"] != asdict(setting):  # a field that came later has its default
        raise ValueError(f"expected runs of {asdict(setting)} in {path}, got {head['setting']}, try another file")
    return runs


def begin(path: Path, setting: Any) -> list[dict[str, Any]]:
    """Read a file to add to: it is begun where there is none, and a line that was cut short is taken out.

    Raises:
        ValueError: it is of another setting.
    """
    runs = read(path, setting)
    kept = lines(path) or [{"machine": machine(), "command": command(), "setting": asdict(setting)}]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # not while another process adds to it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return runs


def add(path: Path, line: Mapping[str, Any]) -> None:
    """Write one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
