"""Freezers end to end: accuracy and seconds of whole trainings, beside trainings of fewer epochs.

    python benchmarks/freezer_runs.py FILE.jsonl [--seeds 3] [--minutes 25]

A sparse ResNet-20 on the cluttered digits, one seed of every arm after the other; what is in the file is not run again.
Seconds are those that the processor spent on this process in the steps, levers included and evaluation not, so that
others on the machine count little. Each arm stands beside what fewer epochs reach in as many seconds, and with as many
FLOPs: by the line through the two lengths around it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing
import torch

from spfde.levers import EpochStart, Step
from spfde.train import Recipe, fit

EPOCHS, IMAGES, TEST, BATCH = 12, 1000, 1000, 32
FEWER = (8, 10, 12)
DENSE = {"freeze": 0.0}
LINEAR = {"freeze": 0.2, "freeze_by": "linear", "freeze_options": {"start": 0.25}}
# Windows that fit into an epoch of 32 steps, between two moves of the masks.
EGERIA = {"freeze": 0.2, "freeze_by": "egeria", "freeze_options": {"every": 4, "window": 5, "lr_drop": 1e9}}
ARMS: dict[str, dict[str, Any]] = {
    **{f"{epochs} epochs": {**DENSE, "epochs": epochs} for epochs in FEWER},
    "SpFDE single-shot": {"freeze": 0.2},
    "SpFDE periodic": {"freeze": 0.2, "freeze_options": {"scheme": "periodic"}},
    "SmartFRZ": {"freeze": 0.2, "freeze_by": "smartfrz"},
    "Egeria": EGERIA,
    "Linear": LINEAR,
    "Linear, cached": {**LINEAR, "cache": "auto"},
}


class Processor:
    """A lever that counts the processor's seconds of an epoch's steps."""

    needs = frozenset({EpochStart, Step})

    def __init__(self) -> None:
        self.seconds, self.since = 0.0, 0.0

    def on(self, event: EpochStart | Step, run: Any) -> None:
        now = time.process_time()
        if isinstance(event, Step):
            self.seconds += now - self.since
        self.since = now

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]


def train(arm: str, seed: int) -> dict[str, Any]:
    """The row of one training."""
    clock = Processor()
    common = {"width": 0.5, "sparsity": 0.8, "sieve": 0.0, "layout": "contiguous", "threads": 1, "seed": seed}
    sizes = {"train_images": IMAGES, "test_images": TEST, "batch_size": BATCH}
    result = fit(Recipe(**common, **sizes, **{"epochs": EPOCHS, **ARMS[arm]}), levers=[clock])
    epochs = result.epochs
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": result.test_accuracy,
        "seconds": clock.seconds,
        "flops": sum(epoch.flops for epoch in epochs),
        "frozen": [len(epoch.frozen) for epoch in epochs],
        "cache": {key: sum(epoch.cache.get(key, 0) for epoch in epochs) for key in ("hits", "carried", "misses")},
    }


def mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Of a figure, over seeds."""
    return statistics.mean(row[key] for row in rows)


def fewer(by_arm: dict[str, list[dict[str, Any]]], key: str, value: float) -> float:
    """The accuracy that trainings without freezing reach where `key`, seconds or FLOPs, is `value`."""
    points = sorted((mean(by_arm[f"{n} epochs"], key), mean(by_arm[f"{n} epochs"], "accuracy")) for n in FEWER)
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return points[0][1] if value < points[0][0] else points[-1][1]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds that every arm has, with the standard error of the accuracy."""
    seeds = set.intersection(*({row["seed"] for row in rows if row["arm"] == arm} for arm in ARMS))
    if not seeds:
        return "no seed of every arm yet"
    by_arm = {arm: [row for row in rows if row["arm"] == arm and row["seed"] in seeds] for arm in ARMS}
    whole = by_arm[f"{EPOCHS} epochs"]
    head = f"{'arm':28}{'accuracy':>9}{'+-':>6}{'seconds':>9}{'FLOPs':>7}"
    lines = [f"{len(seeds)} seeds", f"{head}{'fewer: same seconds':>21}{'same FLOPs':>12}"]
    for arm, own in by_arm.items():
        spread = statistics.stdev(row["accuracy"] for row in own) / math.sqrt(len(own)) if len(own) > 1 else math.nan
        shares = [mean(own, key) / mean(whole, key) for key in ("seconds", "flops")]
        beside = "".join(f"{fewer(by_arm, key, mean(own, key)):{n}.1%}" for key, n in (("seconds", 21), ("flops", 12)))
        lines.append(f"{arm:28}{mean(own, 'accuracy'):9.1%}{spread:6.1%}{shares[0]:9.0%}{shares[1]:7.0%}{beside}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run is begun after so many")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * given.minutes
    lines = given.file.read_text(encoding="utf-8").splitlines() if given.file.exists() else []
    rows = [row for row in map(json.loads, lines) if "arm" in row]
    done = {(row["arm"], row["seed"]) for row in rows}
    given.file.parent.mkdir(parents=True, exist_ok=True)
    with given.file.open("a", encoding="utf-8") as file:
        if not lines:
            about = {"machine": timing.machine(), "command": timing.command(), "epochs": EPOCHS, "images": IMAGES}
            file.write(json.dumps(about) + "\n")
        for seed in range(given.seeds):
            for arm in ARMS:
                if (arm, seed) in done or time.monotonic() > end:
                    continue
                row = train(arm, seed)
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{arm:28} {seed} {row['accuracy']:7.1%} {row['seconds']:7.1f} s", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
