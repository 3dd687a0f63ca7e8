"""What SmartFRZ costs: its snapshots and predictions beside the training steps, its state beside a step's memory.

    python benchmarks/smartfrz.py --threads 1 --json runs/bench/smartfrz.json

Both are timed in one loop, in seconds of the processor that this process had, so that others on the machine do not
count. An epoch has as many steps as 8,000 images make; the first one, which the freezer only measures, is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F

from spfde import models, sparsify
from spfde.freezing import SmartFRZ, blocks
from spfde.profiling import memory
from spfde.profiling.memory import size_of

BATCH, SIZE = 64, 32
NETWORKS = {
    "resnet20": ("resnet20", 0.0),
    "resnet20 90% sparse": ("resnet20", 0.9),
    "vit_tiny_cifar": ("vit_tiny_cifar", 0.0),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=125, help="of an epoch, at least 30")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    print(f"{'network':20} {'epoch s':>8} {'SmartFRZ s':>11} {'time':>7} {'step MB':>8} {'state MB':>9} {'memory':>7}")
    rows = []
    for name in given.networks:
        row = measure(name, given.steps)
        rows.append(row)
        print(
            f"{name:20} {row['epoch_s']:8.2f} {row['smartfrz_s']:11.4f} {row['time']:7.2%} {row['step_mb']:8.1f}"
            f" {row['state_mb']:9.2f} {row['memory']:7.2%}",
            flush=True,
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": timing.machine(), "steps": given.steps, "batch": BATCH, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(name: str, steps: int) -> dict[str, Any]:
    """Seconds of an epoch's steps and of the freezer in it, bytes of a step and of the freezer."""
    network, sparsity = NETWORKS[name]
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(10, (BATCH,))
    model = models.create(network)
    if sparsity:
        model = sparsify(model, sparsity=sparsity, example_input=images[:1])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    freezer = SmartFRZ(model, blocks(model, images[:1]), threshold=1 - 1e-9)  # never sure enough to freeze
    spent = {"train": 0.0, "freezer": 0.0}

    def timed(what: str, call: Any) -> None:
        start = time.process_time()
        call()
        spent[what] += time.process_time() - start

    def passes() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), targets).backward()

    freezer.begin_epoch(0)
    for _ in range(steps):  # only counted
        freezer.observe()
    for _ in range(3):
        passes()
    timed("freezer", lambda: freezer.begin_epoch(1))
    for _ in range(steps):
        timed("train", passes)
        timed("freezer", freezer.observe)
        timed("train", optimizer.step)
    state = size_of(freezer.state_dict())  # with full windows
    timed("freezer", lambda: freezer.begin_epoch(2))
    step = memory(model, images, lambda logits: F.cross_entropy(logits, targets), optimizer).peak
    return {
        "network": name,
        "epoch_s": spent["train"],
        "smartfrz_s": spent["freezer"],
        "time": spent["freezer"] / spent["train"],
        "step_mb": step / 1e6,
        "state_mb": state / 1e6,
        "memory": state / step,
    }


if __name__ == "__main__":
    main()
