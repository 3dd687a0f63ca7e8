"""Online fine-tuning: a stream of labelled batches whose scenario changes, against fine-tuning on each as it arrives.

    python benchmarks/online.py [--seeds 0 1 2] [--arrivals 20] [--sparsity 0.8] [--json FILE]

After EdgeOL (2401.16694): a network trained beforehand on upright digits meets them inverted, turned, noisy and
mirrored, 32 labelled images at a time; between two arrivals it answers requests from the same scenario. A round is 4
steps of 16 images drawn from what arrived since the last one. *Immediate* has a round at each arrival. *Every second*
is the control. *Lazy* waits longer, up to 8 arrivals, as accuracy on arrivals stops rising, and not at all once it
falls. *Frozen* adds SimFreeze, *sparse* the same network at a sparsity, pruned and fine-tuned beforehand.

Accuracy is the mean over all requests. Seconds are the processor's, of fine-tuning and of what decides about it, not of
the requests; joules are the machine's in all of the stream, where it tells them.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import timing
import torch
import torch.nn.functional as F
from study import spread
from torch import Tensor, nn

import spfde
from spfde.data import digits
from spfde.energy.meter import Meter
from spfde.freezing import SimFreeze, blocks

SCENARIOS = ("inverted", "turned", "noisy", "mirrored")
ARRIVAL, REQUESTS, BATCH, STEPS, LONGEST = 32, 50, 16, 4, 8
GAIN, FALL = 0.02, 0.2  # of the accuracy on arrivals: still rising, and a change of scenario


@dataclass(frozen=True)
class Arm:
    """A way of fine-tuning. pace: arrivals of a round, 0 for lazy."""

    name: str
    pace: int = 1
    freezes: bool = False
    sparse: bool = False


ARMS = (
    Arm("immediate"),
    Arm("every second", 2),
    Arm("lazy", 0),
    Arm("immediate, frozen", freezes=True),
    Arm("lazy, frozen", 0, True),
    Arm("immediate, sparse", sparse=True),
    Arm("immediate, frozen, sparse", freezes=True, sparse=True),
    Arm("lazy, frozen, sparse", 0, True, True),
)


@dataclass(frozen=True)
class Row:
    """What an arm came to. frozen: mean share of the blocks in its steps. joules: None, and `why`, where not told."""

    arm: str
    seed: int
    accuracy: float
    seconds: float
    rounds: int
    frozen: float
    joules: float | None
    why: str


class Lazy:
    """How many arrivals to wait for, by the accuracy on each before it is trained on."""

    def __init__(self) -> None:
        self.wait, self.level = 1, None

    def note(self, accuracy: float) -> bool:
        """One more arrival; whether the scenario changed."""
        level = accuracy if self.level is None else self.level
        changed = accuracy < level - FALL
        if changed:
            self.wait, self.level = 1, accuracy
            return True
        self.wait = 1 if accuracy > level + GAIN else min(LONGEST, 2 * self.wait)
        self.level = (level + accuracy) / 2
        return False


def seen_in(scenario: str, x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [n, 1, 16, 16] as a scenario shows them."""
    if scenario == "inverted":
        return -x
    if scenario == "turned":
        return torch.rot90(x, 1, (2, 3))
    if scenario == "noisy":
        return x + torch.randn(x.shape, generator=generator)
    return x.flip(3) if scenario == "mirrored" else x


def scans(count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """So many of scikit-learn's digits to train on and the rest for requests: images [n, 1, 16, 16] and classes."""
    x, y = digits.scans()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = F.interpolate((x[order].unsqueeze(1) - 0.3) / 0.38, size=16, mode="bilinear")
    y = torch.as_tensor(y)[order]
    return (x[:count], y[:count]), (x[count:], y[count:])


def stream(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], arrivals: int, seed: int) -> Iterator[tuple]:
    """(images, classes) that arrive and (images, classes) of the requests behind them, in turn."""
    generator = torch.Generator().manual_seed(seed)
    for scenario in SCENARIOS:
        for _ in range(arrivals):
            parts = []
            for (x, y), count in ((train, ARRIVAL), (test, REQUESTS)):
                chosen = torch.randint(len(x), (count,), generator=generator)
                parts.append((seen_in(scenario, x[chosen], generator), y[chosen]))
            yield tuple(parts)


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float, seed: int) -> nn.Module:
    """The model after training beforehand."""
    optimizer, generator = optimizer_of(model, lr), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers, in eval mode."""
    model.eval()
    right = (model(x).argmax(1) == y).float().mean().item()
    model.train()
    return right


def round_of(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The batches of a round: of so many samples, none twice before all were drawn."""
    passes = [torch.randperm(count, generator=generator) for _ in range(-(-STEPS * BATCH // count))]
    yield from torch.cat(passes)[: STEPS * BATCH].split(BATCH)


def run(arm: Arm, model: nn.Module, arriving: Iterator[tuple], seed: int, meter: Meter) -> Row:
    """Fine-tunes a copy of the model on the stream."""
    model = copy.deepcopy(model).train()
    optimizer, generator, lazy = optimizer_of(model, 0.02), torch.Generator().manual_seed(seed), Lazy()
    freezer, held, right, frozen = None, [], [], []
    seconds, rounds, start = 0.0, 0, time.monotonic()
    for (x, y), requests in arriving:
        before = time.process_time()
        if arm.freezes and freezer is None:
            freezer = SimFreeze(model, blocks(model, x[:1]), every=STEPS, bootstrap=0, samples=16)
        held = [*held, (x, y)][-LONGEST:]
        changed = (arm.pace == 0 or arm.freezes) and lazy.note(accuracy(model, x, y))
        if changed:
            held = held[-1:]
            if freezer is not None:
                freezer.data_changed(x[:16])
        if len(held) >= (arm.pace or lazy.wait):
            xs, ys = (torch.cat(parts) for parts in zip(*held, strict=True))
            held = []
            if freezer is not None:
                freezer.begin_epoch(rounds)
            for chosen in round_of(len(xs), generator):
                optimizer.zero_grad()
                F.cross_entropy(model(xs[chosen]), ys[chosen]).backward()
                if freezer is not None:
                    freezer.observe(xs[:16])
                    frozen.append(sum(block.is_frozen for block in freezer.blocks) / len(freezer.blocks))
                optimizer.step()
            rounds += 1
        seconds += time.process_time() - before
        right.append(accuracy(model, *requests))
    joules, why = drawn(meter, start)
    return Row(arm.name, seed, mean(right), seconds, rounds, mean(frozen or [0.0]), joules, why)


def drawn(meter: Meter, start: float) -> tuple[float | None, str]:
    """Joules since then, or None and why not."""
    draw, _ = meter.span(start, time.monotonic())
    return draw.total, draw.why


def measure(seeds: list[int], arrivals: int, sparsity: float, count: int, epochs: int) -> Iterator[Row]:
    """The rows of all arms, seed by seed."""
    train, test = scans(count)
    with Meter.of_machine() as meter:
        for seed in seeds:
            torch.manual_seed(seed)
            dense = spfde.models.create("resnet20", width=0.5, num_classes=10, in_channels=1)
            dense = trained(dense, *train, epochs, 0.1, seed)
            sparse = spfde.sparsify(copy.deepcopy(dense), sparsity, distribution="erk", init="magnitude")
            sparse = trained(sparse, *train, max(1, epochs // 2), 0.05, seed)
            for arm in ARMS:
                model = sparse if arm.sparse else dense
                yield run(arm, model, stream(train, test, arrivals, seed), seed, meter)


def table(rows: list[Row]) -> str:
    """By arm, as Markdown: mean ± standard deviation over seeds, and beside immediate seed by seed."""
    first = {row.seed: row for row in rows if row.arm == ARMS[0].name}
    lines = [
        "| fine-tuning | accuracy | over immediate | seconds | of immediate | rounds | blocks frozen | joules |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [row for row in rows if row.arm == arm.name]
        right = spread([100 * row.accuracy for row in own], 1)
        gained = spread([100 * (row.accuracy - first[row.seed].accuracy) for row in own], 1) if arm != ARMS[0] else "-"
        seconds = spread([row.seconds for row in own], 2)
        share = spread([100 * row.seconds / first[row.seed].seconds for row in own], 0) + "%" if arm != ARMS[0] else "-"
        told = [row.joules for row in own if row.joules is not None]
        lines.append(
            f"| {arm.name} | {right} | {gained} | {seconds} | {share} | {mean(row.rounds for row in own):.0f} |"
            f" {mean(row.frozen for row in own):.0%} | {spread(told, 1) if told else '-'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arrivals", type=int, default=20, help="of each scenario")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--images", type=int, default=1200, help="to train on beforehand, and that arrive")
    parser.add_argument("--epochs", type=int, default=8, help="of the training beforehand")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    about, rows = timing.machine(), []
    for row in measure(given.seeds, given.arrivals, given.sparsity, given.images, given.epochs):
        print(row, flush=True)
        rows.append(row)
    print(table(rows))
    print("\n".join(f"no joules: {why}" for why in {row.why for row in rows if row.why}))
    if given.json:
        record = {"machine": about, "command": timing.command(), "clock": "processor"}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
