"""Steps to a loss, predicted by the linearised network before fine-tuning and counted in it.

    python benchmarks/predicting.py [--seeds 0 1 2] [--sparsities 0 0.8] [--json FILE]

A small convolutional network is trained on scikit-learn's digits, upright, and fine-tuned on 60 of them that it sees
otherwise, by SGD in batches of 20 and in eval mode, until the mean loss of the 60 is below each target. A prediction is
`spfde.planning.steps_to_loss`, made before the first step. "from scratch" is the same network without training
beforehand. Error: predicted / counted - 1; seconds are the processor's.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import online
import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spfde
from spfde.planning import steps_to_loss

TARGETS = (0.5, 0.1)  # shares of the loss at the start
RATES = (0.005, 0.02)
CHANGES = ("noisy", "mirrored", "from scratch")
SAMPLES, BATCH, MOST = 60, 20, 2000


@dataclass(frozen=True)
class Row:
    """One fine-tuning to one target. predicted: None where refused, and `reason`. counted: None if not reached."""

    change: str
    sparsity: float
    seed: int
    lr: float
    momentum: float
    target: float
    predicted: int | None
    counted: int | None
    kept: float
    reason: str
    seconds_predicting: float
    seconds_training: float

    @property
    def error(self) -> float | None:
        """Of the predicted steps, None where there is nothing to compare."""
        return None if self.predicted is None or not self.counted else self.predicted / self.counted - 1


def network(seed: int) -> nn.Module:
    """Two convolutions and two linear layers, without norms."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64),
        nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def counted(model: nn.Module, x: Tensor, y: Tensor, targets: list[float], lr: float, momentum: float, seed: int):
    """Steps until each target, None where not reached, and the processor's seconds up to each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    generator, found, start = torch.Generator().manual_seed(seed), {}, time.process_time()
    order: list[Tensor] = []
    for step in range(MOST + 1):
        with torch.no_grad():
            now = F.cross_entropy(model(x), y).item()
        found.update({t: (step, time.process_time() - start) for t in targets if now <= t and t not in found})
        if len(found) == len(targets):
            break
        if not order:
            order = list(torch.randperm(len(x), generator=generator).split(BATCH))
        chosen = order.pop()
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return [found.get(t, (None, time.process_time() - start)) for t in targets]


def measure(seeds: list[int], sparsities: list[float]) -> Iterator[Row]:
    """All rows."""
    train, test = online.scans(1200)
    for seed in seeds:
        for sparsity in sparsities:
            plain = network(seed)
            if sparsity:
                plain = spfde.sparsify(plain, sparsity, seed=seed)
            ready = online.trained(copy.deepcopy(plain), *train, 8, 0.05, seed)
            generator = torch.Generator().manual_seed(seed)
            for change in CHANGES:
                model = plain if change == "from scratch" else ready
                x, y = online.seen_in(change, test[0][:SAMPLES], generator), test[1][:SAMPLES]
                with torch.no_grad():
                    first = F.cross_entropy(model(x), y).item()
                for lr, momentum in ((RATES[0], 0.9), (RATES[1], 0.0)):
                    targets = [share * first for share in TARGETS]
                    steps = counted(copy.deepcopy(model), x, y, targets, lr, momentum, seed)
                    for share, target, (taken, training) in zip(TARGETS, targets, steps, strict=True):
                        start = time.process_time()
                        made = steps_to_loss(model, x, y, target, lr, momentum=momentum, most=MOST)
                        spent = time.process_time() - start
                        yield Row(
                            change, sparsity, seed, lr, momentum, share, made.steps, taken, made.kept, made.reason,
                            spent, training,
                        )  # fmt: skip


def table(rows: list[Row]) -> Iterator[str]:
    """Median and largest error by kind of fine-tuning and target."""
    yield f"{'':14}{'sparsity':>9}{'target':>8}{'refused':>9}{'steps':>7}{'error':>8}{'largest':>9}{'signed':>9}"
    for change, sparsity, target in dict.fromkeys((row.change, row.sparsity, row.target) for row in rows):
        own = [row for row in rows if (row.change, row.sparsity, row.target) == (change, sparsity, target)]
        errors = [row.error for row in own if row.error is not None]
        refused = sum(row.predicted is None for row in own)
        steps = [row.counted for row in own if row.counted]
        figures = f"{median(map(abs, errors)):8.0%}{max(map(abs, errors)):9.0%}{median(errors):+9.0%}" if errors else ""
        yield f"{change:14}{sparsity:9.0%}{target:8.0%}{refused:6}/{len(own)}{median(steps or [0]):7.0f}{figures}"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = timing.machine()
    rows = list(measure(given.seeds, given.sparsities))
    print("\n".join(table(rows)))
    if given.json:
        record = {"machine": about, "command": timing.command(), "clock": "processor"}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
