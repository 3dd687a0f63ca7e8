"""Writes docs/models-tested.md from a day's record: build/models/bin/python tests/models_sweep/render.py.

A sweep may run in parts: cells that the page has and the record has not are kept, marked as older.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "build" / "models" / "sweep.json", ROOT / "docs" / "models-tested.md"
STAGES = ("sparsify", "fuse", "train", "move", "freeze")

INTRODUCTION = """# Models tested

Models of other libraries, randomly initialised and small, taken through what a user does: `make test-models`. Every
stage compares with the masked dense copy, the original definition with its weights multiplied by the masks, in float32
and float64: outputs, the gradients of inputs and parameters, what training steps change.

- **sparsify**: 80% of the weights zero, in training and evaluation, and `densify` back; how many layers became sparse.
- **fuse**: `fuse` and `unfuse`; how many modules changed.
- **train**: three steps of SGD and of AdamW.
- **move**: an update by SET and by RigL; how many weights moved, and that RigL grew where torch's gradient is largest.
- **freeze**: the front half of the blocks; the share of parameters that stays trainable.

The number behind a semicolon is the largest error as a share of what is allowed: ten times the distance that torch's
own float32 has from float64 (`tests/models_sweep/dense_copy.py`). *Refused* is a known exception, listed below.
*Batch 2* means that the first one had an activation at a kink (ReLU, max pooling) nearer than float32 can tell.
"""


OLDER = " †"


def shown(page: str) -> tuple[str, dict[str, dict[str, str]]]:
    """The oldest date of a page, and its cells by model and stage."""
    dates = re.findall(r"\d{4}-\d\d-\d\d", page)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    cells = {name: dict(zip(STAGES, found, strict=True)) for name, *found in rows if name != "model"}
    return min(dates, default=""), cells


def page(record: dict, before: str = "") -> str:
    """before: the page that is written over."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in record["rows"]:
        reason = row.get("reason")
        cells[row["model"]][row["stage"]] = ("refused" if reason else row["found"]) if row["passed"] else "**failed**"
        if reason and row["model"] not in reasons[reason]:
            reasons[reason].append(row["model"])
    date, older = shown(before)
    kept = 0
    for name, found in older.items():
        for stage in STAGES:
            if stage not in cells[name] and found[stage] != "not run":
                cells[name][stage] = found[stage].removesuffix(OLDER) + OLDER
                kept += 1
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    head = f"| model | {' | '.join(STAGES)} |\n|---|{'---|' * len(STAGES)}"
    lines = [
        f"| {name} | {' | '.join(found.get(s, 'not run') for s in STAGES)} |" for name, found in sorted(cells.items())
    ]
    known = [f"- {', '.join(models)}: {reason}." for reason, models in reasons.items()]
    when = record["date"] + (f" ({kept} cells marked † earlier, from {date} on)" if kept else "")
    run = f"Run on {when}, {len(cells)} models, with {versions}:"
    parts = [INTRODUCTION, run, "\n".join([head, *lines]), "## Known exceptions", "\n".join(known or ["None."])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RECORD.read_text()), PAGE.read_text()))
