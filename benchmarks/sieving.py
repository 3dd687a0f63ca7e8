"""What sieves cost: state, epoch boundary and `observe`, at up to ten million samples.

    python benchmarks/sieving.py --json runs/bench/sieving.json

`observe` is timed on a batch of 64 beside a training step of a dense ResNet-20 on 32x32 images, in the same run.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

from spfde.env import report
from spfde.models import create
from spfde.sieving import METHODS, Sieve

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != "grand"])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    step = step_seconds(max(3, given.repeats // 20))
    rows = [measure(name, given.samples, given.repeats, step) for name in given.methods]
    print(f"a step of ResNet-20 on {BATCH} images: {step * 1e3:.1f} ms, {torch.get_num_threads()} threads")
    print(f"{'sieve':12} {'state MB':>9} {'boundary s':>11} {'observe us':>11} {'of a step':>10}")
    for row in rows:
        print(
            f"{row['method']:12} {row['state_mb']:9.0f} {row['boundary_s']:11.2f} {row['observe_us']:11.0f} "
            f"{100 * row['of_a_step']:9.2f}%"
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": time.strftime("%Y-%m-%d"), "env": report(), "samples": given.samples, "step_s": step}
        given.json.write_text(json.dumps({**facts, "rows": rows}, indent=1, default=str) + "\n")


def step_seconds(repeats: int) -> float:
    """Median of a dense training step."""
    model = create("resnet20")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return median(step, repeats)


def measure(name: str, samples: int, repeats: int, step: float) -> dict[str, float | str]:
    """State, boundary (with the order of the next epoch) and `observe` of one sieve that has seen an epoch."""
    sieve = build(name, samples)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(samples, generator=generator)
    correct = torch.rand(samples, generator=generator) < 0.8
    boundaries, seen = [], torch.zeros(0)
    for _ in range(3):
        active = sieve.active
        for part in active.split(1_000_000):
            if sieve.by_logits:
                sieve.observe(part, torch.stack([losses[part] * 6, correct[part].float()], 1), part % 2)
            else:
                sieve.observe(part, losses=losses[part], correct=correct[part])
        begin = time.perf_counter()
        sieve.end_epoch()
        seen = sieve.order()
        boundaries.append(time.perf_counter() - begin)
    batches = iter(seen.split(BATCH))
    logits = torch.randn(BATCH, 10, generator=generator)
    observe = median(lambda: sieve.observe(next(batches), logits, torch.zeros(BATCH, dtype=torch.int64)), repeats)
    state = sum(value.nbytes for value in sieve.state_dict().values() if isinstance(value, torch.Tensor))
    return {
        "method": name,
        "state_mb": state / 1e6,
        "boundary_s": max(boundaries),
        "observe_us": observe * 1e6,
        "of_a_step": observe / step,
    }


def build(name: str, samples: int) -> Sieve:
    given = {"fraction": 0.2, "interval": 1, "at": 1, "epochs": 10, "seed": 0}
    takes = inspect.signature(METHODS[name]).parameters
    return METHODS[name](samples, **{key: value for key, value in given.items() if key in takes})


def median(call, repeats: int) -> float:
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
