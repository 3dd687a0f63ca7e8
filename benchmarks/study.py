"""Which way of finding masks is the most accurate: the same small training with each, at several sparsities and seeds.

    python benchmarks/study.py FILE.jsonl [--seeds 3] [--sparsities 0.9,0.95,0.98] [--methods RigL,SNIP]

ResNet-8 on the embedded digits, averaged down to 16x16, few enough of them that the dense network is not saturated.
Every finished run is a line of FILE; what is there is not run again. Runs with the same seed have the same initial
weights, data order and epochs. Seconds are processor time of one thread, which other processes hardly disturb.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import replicas
import run_file
import torch
from timing import parts
from torch.nn import functional

from spfde.data import Images, load
from spfde.models import ResNet
from spfde.train import Recipe, fit

DENSE = "dense"
# Layers get ERK's densities, but for the methods that rank all weights of the network at once.
ERK, RANKED = {"distribution": "erk"}, {"distribution": "global", "topology": "static"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    DENSE: {},
    "static random": {**ERK, "topology": "static"},
    "SNIP": {**RANKED, "init": "snip"},
    "GraSP": {**RANKED, "init": "grasp"},
    "SynFlow": {**RANKED, "init": "synflow"},
    "SET": {**ERK, "topology": "set"},
    "RigL": {**ERK, "topology": "rigl"},
    "DST-EE": {**ERK, "topology": "dst-ee"},
    "MEST EM&S": {**ERK, "topology": "mest", "soft": True},
}
# Dense at first: recorded apart.
FROM_DENSE: Mapping[str, Mapping[str, Any]] = {
    "GMP": {**ERK, "topology": "gmp"},
    "GaP": {**ERK, "topology": "gap"},
    "P-GaP x 2": {**ERK, "topology": "p-gap"},
    "constrained L0": {**ERK, "topology": "constrained-l0"},
    "compressed sensing": {**ERK, "topology": "compressed-sensing"},
    "directional pruning": {**ERK, "topology": "directional-pruning"},
    "polarization": {**ERK, "topology": "polarization"},
}
ALL = {**METHODS, **FROM_DENSE}
PROCESSES = {"P-GaP x 2": 2}  # that train a replica each
SPARSITIES = (0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    train_images: int = 2000
    test_images: int = 1000
    side: int = 16
    depth: int = 8
    width: float = 1.0
    epochs: int = 12
    batch_size: int = 32
    lr: float = 0.1


@dataclass(frozen=True)
class Case:
    """One run; the sparsity of a dense one is 0."""

    method: str
    sparsity: float
    seed: int


@dataclass(frozen=True)
class Run:
    """What a run came to: accuracies as fractions, seconds of processor time, training FLOPs; of all its processes."""

    case: Case
    test_accuracy: float
    train_accuracy: float
    sparsity: float
    cpu_seconds: float
    flops: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """Build it from `asdict`'s values."""
        return cls(**{**values, "case": Case(**values["case"])})


def cases(seeds: int, sparsities: Sequence[float], methods: Sequence[str]) -> list[Case]:
    """All runs, seed by seed, so that a study that was cut short has whole tables of fewer seeds."""
    return [
        Case(method, sparsity, seed)
        for seed in range(seeds)
        for method in methods
        for sparsity in ((0.0,) if method == DENSE else sparsities)
    ]


def recipe(case: Case, setting: Setting) -> Recipe:
    """The recipe of a run: masks are the only lever."""
    shared = {
        "epochs": setting.epochs,
        "batch_size": setting.batch_size,
        "lr": setting.lr,
        "seed": case.seed,
        "layout": "contiguous",
        "threads": 1,
    }
    if case.method == DENSE:
        return Recipe(method="dense", **shared)
    return Recipe(sparsity=case.sparsity, freeze=0, sieve=0, **ALL[case.method], **shared)


@cache
def digits(setting: Setting) -> tuple[Images, Images]:
    """Training and test images [n, 1, side, side]."""
    sets = load("digits", train=setting.train_images, test=setting.test_images)
    size = (setting.side, setting.side)
    train, test = (
        Images(functional.adaptive_avg_pool2d(one.images, size), one.targets) for one in (sets.train, sets.test)
    )
    return train, test


def train(case: Case, setting: Setting) -> Run:
    """Run one case."""
    train_set, test_set = digits(setting)
    torch.manual_seed(case.seed)
    model = ResNet(setting.depth, 10, in_channels=1, width=setting.width)
    if case.method in PROCESSES:
        trained = replicas.train(recipe(case, setting), model, train_set, test_set, PROCESSES[case.method])
        return Run(case, **asdict(trained))
    start = time.process_time()
    result = fit(recipe(case, setting), model=model, train_set=train_set, test_set=test_set)
    seconds = time.process_time() - start
    last = result.epochs[-1]
    return Run(case, last.test_accuracy, last.train_accuracy, last.sparsity, seconds, result.flops)


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
        if case in done:
            continue
        run = train(case, setting)
        run_file.add(path, asdict(run))
        yield run


def table(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over seeds by method and sparsity, as Markdown; FLOPs are shares of dense ones."""
    dense = [run.flops for run in runs if run.case.method == DENSE]
    lines = ["| method | sparsity | test accuracy | seconds | FLOPs | seeds |", "|---|---|---|---|---|---|"]
    for method, sparsity in dict.fromkeys((run.case.method, run.case.sparsity) for run in order(runs)):
        some = [run for run in runs if (run.case.method, run.case.sparsity) == (method, sparsity)]
        accuracy = spread([100 * run.test_accuracy for run in some], 1)
        seconds = spread([run.cpu_seconds for run in some], 1)
        flops = f"{mean(run.flops for run in some) / mean(dense):.3f}" if dense else "-"
        lines.append(f"| {method} | {sparsity:.0%} | {accuracy} | {seconds} | {flops} | {len(some)} |")
    return "\n".join(lines)


def order(runs: Iterable[Run]) -> list[Run]:
    """Runs by sparsity, then by method as they are listed."""
    return sorted(runs, key=lambda run: (run.case.sparsity, list(ALL).index(run.case.method)))


def spread(values: Sequence[float], digits: int) -> str:
    """Mean +- standard deviation of a sample; of one value, that."""
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="where the runs are kept, one JSON line each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=lambda text: [float(part) for part in parts(text)], default=SPARSITIES)
    parser.add_argument("--methods", type=parts, default=list(METHODS), help=f"of {', '.join(ALL)}")
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = parser.parse_args(arguments)
    unknown = [method for method in given.methods if method not in ALL]
    if unknown:
        parser.error(f"expected --methods of {', '.join(ALL)}, got {', '.join(unknown)}")
    setting = Setting(**{name: getattr(given, name) for name in asdict(Setting())})
    torch.set_num_threads(1)
    # What is loaded or built once in a process is no part of a run.
    for method in (DENSE, "DST-EE"):
        train(Case(method, 0.9, 0), Setting(train_images=64, test_images=16, epochs=2))
    for run in study(given.file, cases(given.seeds, given.sparsities, given.methods), setting):
        case = run.case
        print(
            f"{case.method} {case.sparsity:.0%} seed {case.seed}: test {run.test_accuracy:.1%},"
            f" {run.cpu_seconds:.1f} s of processor time",
            flush=True,
        )
    print(table(read(given.file, setting)))


if __name__ == "__main__":
    main()
