"""Writes docs/models-tested.md from a day's record: build/models/bin/python tests/models_sweep/render.py."""

from __future__ import annotations

import json
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
A sweep may run in parts: the cells are of one day and one set of packages, not always of one commit of spfde.
"""


def page(record: dict) -> str:
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in record["rows"]:
        reason = row.get("reason")
        cells[row["model"]][row["stage"]] = ("refused" if reason else row["found"]) if row["passed"] else "**failed**"
        if reason and row["model"] not in reasons[reason]:
            reasons[reason].append(row["model"])
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    head = f"| model | {' | '.join(STAGES)} |\n|---|{'---|' * len(STAGES)}"
    lines = [
        f"| {name} | {' | '.join(found.get(s, 'not run') for s in STAGES)} |" for name, found in sorted(cells.items())
    ]
    known = [f"- {', '.join(models)}: {reason}." for reason, models in reasons.items()]
    run = f"Run on {record['date']}, {len(cells)} models, with {versions}:"
    parts = [INTRODUCTION, run, "\n".join([head, *lines]), "## Known exceptions", "\n".join(known or ["None."])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RECORD.read_text())))
