"""Whether a whole run saves what its freezing plan says, in FLOPs and in seconds, for every scheme.

    python benchmarks/freezing_plan.py --threads 1 --json runs/bench/freezing-plan.json

Runs of the same sparse, fused network on random 32x32 images, one without freezing and one for each scheme and target,
take their steps in turn: step by step, so that what slows the machine down slows all of them. An epoch counts as
`--of` steps of the median of the `--steps` that are measured, and what its first one took more, as after a freeze.
FLOPs are those of the gradients that each epoch's steps compute. `--clock processor` counts the processor's time that
this process had, so that other programs on the machine do not count; one thread then. A plan is off by saved / planned
- 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import timing
import torch
import torch.nn.functional as F
from torch import nn

from spfde import freezing, fuse, sparsify
from spfde.freezing.schemes import SCHEMES
from spfde.models import create
from spfde.train.flops import training_flops

TARGETS = ("flops", "seconds")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
ALLOWED = 0.10  # of what was planned


@dataclass(frozen=True)
class Row:
    """A run: shares of the run without freezing, planned and saved."""

    scheme: str
    target: str
    planned: float
    saved: float

    @property
    def off(self) -> float:
        """How far the plan is off."""
        return self.saved / self.planned - 1


class Arm:
    """One network in training, and what its steps cost so far."""

    def __init__(self, given: argparse.Namespace, clock: Callable[[], float]) -> None:
        torch.manual_seed(0)
        network = create(given.model, num_classes=10, width=given.width)
        self.model = fuse(sparsify(network, given.sparsity, example_input=torch.randn(1, 3, 32, 32))).train()
        self.blocks = freezing.blocks(self.model, torch.randn(1, 3, 32, 32))
        self.train = step_of(self.model, self.blocks if given.prefix else None, 1e-3)
        self.freezer: freezing.Progressive | None = None
        self.clock, self.seconds, self.flops = clock, 0.0, 0.0
        self.times: list[float] = []  # of the epoch's steps

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        start = self.clock()
        self.train(images, targets)
        self.times.append(self.clock() - start)

    def end_epoch(self, steps: int) -> None:
        first, *others = self.times
        usual = statistics.median(others)
        self.seconds += steps * usual + max(0.0, first - usual)
        self.times = []


def step_of(
    model: nn.Module, blocks: Sequence[freezing.FreezeBlock] | None, lr: float
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step of the model, its frozen front as one call where `blocks` are given."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    prefix = nullcontext if blocks is None else freezing.Prefix(model, blocks)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with prefix():
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()

    return step


def arms(given: argparse.Namespace) -> dict[tuple[str, str], Arm]:
    """Those of the plans that can be reached, and the one without freezing, named ("", "")."""
    clock = CLOCKS[given.clock]
    images, targets = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    made = {("", ""): Arm(given, clock)}
    whole = made["", ""]

    @cache
    def of_copy(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], None]:
        return step_of(model, freezing.blocks(model, images[:1]) if given.prefix else None, 0.0)

    def step(model: nn.Module) -> None:
        of_copy(model)(images, targets)

    seconds = freezing.step_seconds(whole.model, whole.blocks, step, clock=clock, rounds=given.rounds)
    print("ms of a step with 0, 1, ... blocks frozen:", " ".join(f"{1e3 * s:.1f}" for s in seconds))
    for target in given.targets:
        for scheme in SCHEMES:
            arm = Arm(given, clock)
            plan = {"epochs": given.epochs, "interval": given.interval, "flops_reduction": given.reduction}
            known = {"target": target, "seconds": seconds if target == "seconds" else None}
            try:
                arm.freezer = freezing.Progressive(arm.model, arm.blocks, scheme=scheme, **plan, **known)
            except ValueError as error:
                print(f"{scheme} by {target}: {error}")
                continue
            made[scheme, target] = arm
    return made


def run(made: dict[tuple[str, str], Arm], given: argparse.Namespace) -> list[Row]:
    """Trains all of them, step by step in turn."""
    for epoch in range(given.epochs):
        images, targets = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
        for arm in made.values():
            if arm.freezer is not None:
                arm.freezer.begin_epoch(epoch)
            arm.flops += training_flops(arm.model, images[:1])
        for _ in range(given.steps):
            for arm in made.values():
                arm.step(images, targets)
        for arm in made.values():
            arm.end_epoch(given.of)
    whole = made.pop(("", ""))
    return [
        Row(scheme, target, arm.freezer.saving, 1 - getattr(arm, target) / getattr(whole, target))
        for (scheme, target), arm in made.items()
        if arm.freezer is not None
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6, help="of an epoch, measured")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement that seconds are planned by")
    parser.add_argument("--of", type=int, default=500, help="steps that an epoch counts as")
    parser.add_argument("--interval", type=int, default=1)
    parser.add_argument("--reduction", type=float, default=0.15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--prefix", action=argparse.BooleanOptionalAction, default=True, help="the front as one call")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = run(arms(given), given)
    print(f"{'scheme':20} {'target':8} {'planned':>8} {'saved':>8} {'off by':>8}")
    for row in rows:
        print(f"{row.scheme:20} {row.target:8} {row.planned:8.2%} {row.saved:8.2%} {row.off:+8.1%}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        options = {name: value for name, value in vars(given).items() if name != "json"}
        record = {"machine": timing.machine(), "options": options, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(abs(row.off) > ALLOWED for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
