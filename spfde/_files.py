"""Files of values: written whole or not at all, and refused before the work that would fill them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; whoever is interrupted leaves the file that was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def check_writable(path: Path) -> None:
    """Makes the folder of a file.

    Raises:
        OSError: nothing can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"expected a file to write, got the folder {path}, try {path / 'out.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.touch()
    draft.unlink()
