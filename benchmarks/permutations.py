"""Whether a permutation brings blocks and n:m to the accuracy of single weights: drawn, learned, or none.

    python benchmarks/permutations.py FILE.jsonl [--seeds 3] [--sparsities 0.9,0.95] [--patterns block:16x16,2:4]

A residual MLP, x + fc2(gelu(fc1(norm(x)))) a few times, on the embedded digits averaged down to 16x16; RigL moves the
masks of all its layers but the first and the last. Every finished run is a line of FILE; what is there is not run
again. Runs of a seed share initial dense weights and the order of the data. Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import run_file
import torch
from study import spread
from timing import parts
from torch import Tensor, nn
from torch.nn import functional as F

import spfde
from spfde.data import load
from spfde.topology import Permutations, RigL, permute

DENSE, SINGLE = "dense", "unstructured"
FIRST = "drawn for fc1"  # whose inputs are the residual stream's, not a hidden layer's
PERMUTED = ("none", "drawn", FIRST, "learned")
TWICE = "block:16x16"  # groups hidden units as outputs of one layer and as inputs of the next
PATTERNS = ("block:4x1", TWICE, "2:4")
SPARSITIES = (0.9, 0.95)


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    train_images: int = 8000
    test_images: int = 4000
    side: int = 16
    width: int = 256
    blocks: int = 3
    epochs: int = 6
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Case:
    """One run. pattern: "dense", or one of a sparse layer. permuted: of `PERMUTED`."""

    pattern: str
    sparsity: float
    permuted: str
    seed: int


@dataclass(frozen=True)
class Run:
    """What a run came to. accuracies: fractions. step: seconds of processor time of a step in the last quarter."""

    case: Case
    test_accuracy: float
    train_accuracy: float
    cpu_seconds: float
    step: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """Build it from `asdict`'s values."""
        return cls(**{**values, "case": Case(**values["case"])})


class Residual(nn.Module):
    """x + fc2(gelu(fc1(norm(x)))), twice as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


def cases(seeds: int, sparsities: Sequence[float], patterns: Sequence[str]) -> list[Case]:
    """All runs, seed by seed, so that a study that was cut short has whole tables of fewer seeds."""
    found = []
    for seed in range(seeds):
        found.append(Case(DENSE, 0.0, "none", seed))
        found += [Case(SINGLE, sparsity, "none", seed) for sparsity in dict.fromkeys((0.5, *sparsities))]
        for pattern in patterns:
            shares = (0.5,) if pattern == "2:4" else sparsities
            ways = [permuted for permuted in PERMUTED if permuted != FIRST or pattern == TWICE]
            found += [Case(pattern, share, permuted, seed) for share in shares for permuted in ways]
    return found


@cache
def digits(setting: Setting) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images [n, side * side] with their classes [n]."""
    sets, size = load("digits", train=setting.train_images, test=setting.test_images), (setting.side, setting.side)
    train, test = (
        (F.adaptive_avg_pool2d(one.images, size).flatten(1), one.targets.long()) for one in (sets.train, sets.test)
    )
    return train, test


def network(case: Case, setting: Setting) -> nn.Module:
    """The model of a run; RigL and what is learned are still to come."""
    torch.manual_seed(case.seed)
    model = nn.Sequential(
        nn.Linear(setting.side**2, setting.width),
        *(Residual(setting.width) for _ in range(setting.blocks)),
        nn.LayerNorm(setting.width),
        nn.Linear(setting.width, 10),
    )
    if case.pattern != DENSE:
        sparsity = None if case.pattern == "2:4" else case.sparsity
        spfde.sparsify(model, sparsity, pattern=case.pattern, seed=case.seed)
    if not case.permuted.startswith("drawn"):
        return model
    return permute(model, seed=case.seed, exclude=("*.fc2",) if case.permuted == FIRST else ())


def train(case: Case, setting: Setting) -> Run:
    """Run one case."""
    (x, y), test = digits(setting)
    model = network(case, setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
    each = len(x) // setting.batch_size
    total = setting.epochs * each
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    levers = [Permutations(model, total_steps=total, seed=case.seed)] if case.permuted == "learned" else []
    if case.pattern != DENSE:
        levers.insert(0, RigL(model, optimizer, total_steps=total, every=max(1, each // 4), seed=case.seed))
    order = torch.Generator().manual_seed(case.seed)
    start, late = time.process_time(), 0.0
    for step in range(total):
        if step % each == 0:
            batches = torch.randperm(len(x), generator=order).split(setting.batch_size)
        if step == total - total // 4:
            late = time.process_time()
        batch = batches[step % each]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        cosine.step()
        for lever in levers:
            lever.step()
    seconds = time.process_time() - start
    step_seconds = (start + seconds - late) / max(1, total // 4)
    return Run(case, accuracy(model, *test), accuracy(model, x, y), seconds, step_seconds)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of classes that are right."""
    model.eval()
    return float((model(x).argmax(1) == y).double().mean())


def read(path: Path, setting: Setting) -> list[Run]:
    """The finished runs in a file, [] if there is none.

    Raises:
        ValueError: they are of another setting.
    """
    return [Run.from_dict(run) for run in run_file.read(path, setting)]


def study(path: Path, wanted: Iterable[Case], setting: Setting) -> Iterator[Run]:
    """Run what the file does not have yet, and yield each run once its line is written.

    Raises:
        ValueError: the file holds runs of another setting.
    """
    done = {Run.from_dict(run).case for run in run_file.begin(path, setting)}
    for case in wanted:
        if case not in done:
            run = train(case, setting)
            run_file.add(path, asdict(run))
            yield run


def table(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over seeds by arm, as Markdown."""
    lines = [
        "| pattern | sparsity | permutation | test accuracy | seconds | ms a step, last quarter | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    arms = sorted(
        dict.fromkeys((run.case.sparsity, run.case.pattern, run.case.permuted) for run in runs),
        key=lambda arm: (arm[0], (DENSE, SINGLE, *PATTERNS).index(arm[1]), PERMUTED.index(arm[2])),
    )
    for arm in arms:
        some = [run for run in runs if (run.case.sparsity, run.case.pattern, run.case.permuted) == arm]
        accuracies = spread([100 * run.test_accuracy for run in some], 1)
        seconds, step = spread([run.cpu_seconds for run in some], 1), 1000 * mean(run.step for run in some)
        lines.append(f"| {arm[1]} | {arm[0]:.0%} | {arm[2]} | {accuracies} | {seconds} | {step:.1f} | {len(some)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="where the runs are kept, one JSON line each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=lambda text: [float(part) for part in parts(text)], default=SPARSITIES)
    parser.add_argument("--patterns", type=parts, default=PATTERNS)
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = parser.parse_args(arguments)
    setting = Setting(**{name: getattr(given, name) for name in asdict(Setting())})
    torch.set_num_threads(1)
    for run in study(given.file, cases(given.seeds, given.sparsities, given.patterns), setting):
        case = run.case
        print(
            f"{case.pattern} {case.sparsity:.0%} {case.permuted} seed {case.seed}: test {run.test_accuracy:.1%},"
            f" {run.cpu_seconds:.1f} s, {1000 * run.step:.1f} ms a step in the end",
            flush=True,
        )
    print(table(read(given.file, setting)))


if __name__ == "__main__":
    main()
