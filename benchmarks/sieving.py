"""What sieves cost at ten million samples: state, epoch boundary, and `observe` beside a training step.

    python benchmarks/sieving.py --threads 2 --json runs/bench/sieving.json
    python benchmarks/sieving.py --threads 1 --look --rounds 7 --json runs/bench/sieving-look.json

The boundary includes the order of the next epoch. `observe` takes a batch of 64, and is timed in turn with a step of a
dense ResNet-20 on as many 32x32 images. GraNd, whose score is a pass of its own, is timed without it: `--look` times
that pass, dense and sparse, beside a step of the same model.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F

from spfde import sparsify
from spfde.models import create
from spfde.sieving import METHODS, GraNd, Sieve
from spfde.sieving.methods import grand
from spfde.tuning.timing import seconds_of

BATCH, EPOCHS, CHUNK = 64, 3, 1_000_000
OPTIONS = {"fraction": 0.2, "interval": 1, "at": 1, "epochs": 10, "seed": 0}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--look", action="store_true", help="time GraNd's pass, and nothing else")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = looks(given.rounds) if given.look else sieves(given.methods, given.samples, given.rounds)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": timing.machine(), "samples": given.samples, "rounds": given.rounds, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def sieves(methods: list[str], samples: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    step = training_step(create("resnet20"))
    print(f"{'sieve':12} {'state MB':>9} {'boundary s':>11} {'observe us':>11} {'of a step':>10}")
    rows = []
    for name in methods:
        rows.append(measure(name, samples, rounds, step))
        state, boundary, observe, share = (
            rows[-1][key] for key in ("state_mb", "boundary_s", "observe_us", "of_a_step")
        )
        print(f"{name:12} {state:9.0f} {boundary:11.2f} {observe:11.0f} {share:10.2%}", flush=True)
    return rows


def looks(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a batch's gradient norms, many samples at a time and one by one, and of a training step."""
    rows, room = [], grand.ROOM
    print(f"{'model':12} {'step ms':>9} {'together ms':>12} {'one by one ms':>14}")
    for name, model in (("dense", create("resnet20")), ("75% sparse", sparsify(create("resnet20"), 0.75))):
        images, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

        def norms(room: int, given: tuple[Any, ...] = (model, images, targets)) -> None:
            grand.ROOM = room
            grand.gradient_norms(*given)

        calls = {"step": training_step(model), "together": lambda: norms(room), "one_by_one": lambda: norms(0)}
        try:
            found = timing.interleaved(calls, rounds)
        finally:
            grand.ROOM = room
        rows.append({"model": name, **{f"{part}_ms": each.median * 1e3 for part, each in found.items()}})
        step, together, alone = (rows[-1][f"{part}_ms"] for part in calls)
        print(f"{name:12} {step:9.0f} {together:12.0f} {alone:14.0f}", flush=True)
    return rows


def training_step(model: torch.nn.Module) -> Callable[[], None]:
    """A step of a ResNet-20 on a batch of random images."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def measure(name: str, samples: int, rounds: int, step: Callable[[], None]) -> dict[str, Any]:
    """State, longest boundary and `observe` of one sieve, after epochs of random losses."""
    takes = inspect.signature(METHODS[name]).parameters
    sieve = METHODS[name](samples, **{key: value for key, value in OPTIONS.items() if key in takes})
    generator = torch.Generator().manual_seed(0)
    losses, correct = torch.rand(samples, generator=generator), torch.rand(samples, generator=generator) < 0.8
    order, boundaries = sieve.order(), []
    if isinstance(sieve, GraNd):
        sieve._norms[:] = losses.numpy()

    def boundary() -> None:
        nonlocal order
        sieve.end_epoch()
        order = sieve.order()

    for _ in range(EPOCHS):
        for part in sieve.active.split(CHUNK):
            observe(sieve, part, losses[part], correct[part])
        boundaries.append(seconds_of(boundary))
    batches, logits = iter(order.split(BATCH)), torch.randn(BATCH, 10, generator=generator)
    targets = torch.zeros(BATCH, dtype=torch.int64)
    calls = {"step": step, "observe": lambda: sieve.observe(next(batches), logits, targets)}
    seconds = {part: found.median for part, found in timing.interleaved(calls, rounds).items()}
    state = sum(value.nbytes for value in sieve.state_dict().values() if isinstance(value, torch.Tensor))
    return {
        "method": name,
        "state_mb": state / 1e6,
        "boundary_s": max(boundaries),
        "observe_us": seconds["observe"] * 1e6,
        "of_a_step": seconds["observe"] / seconds["step"],
    }


def observe(sieve: Sieve, samples: torch.Tensor, losses: torch.Tensor, correct: torch.Tensor) -> None:
    """Losses in the form that the sieve takes."""
    if sieve.by_logits:
        sieve.observe(samples, torch.stack([6 * losses, correct.float()], 1), samples % 2)
    else:
        sieve.observe(samples, losses=losses, correct=correct)


if __name__ == "__main__":
    main()
