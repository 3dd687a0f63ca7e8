"""The same accuracy in less time? Every lever and every control, trained alike, timed apart.

    python benchmarks/proof.py FILE.jsonl --stage screen [--minutes 140] [--arms "dense;DST-EE 90%"]
    python benchmarks/proof.py FILE.jsonl --stage screen --timing 5
    python benchmarks/proof.py FILE.jsonl --stage screen --whole --arms "dense;SpFDE 20% + 20%"
    python benchmarks/proof.py FILE.jsonl --stage final --seeds 3 [--part 1/2]

`tune` tries other learning rates. The screen trains every arm with one seed on 12,000 images and judges by 5,000
others of the training half; the final stage trains those that decide on all images, with several seeds that arms
share, and judges by the test half. `digits-tune` and `digits` do so on what `make demo` trains, `text-screen` and
`text-final` with a small language model on the source of Python's standard library. Every finished run is a line of
FILE, an unfinished one goes on from its last epoch: the same command continues, after `--minutes` or a crash. Accuracy
runs may share the machine: their seconds count for nothing. `--timing ROUNDS` times every phase of every arm's schedule
in turn with the dense training, and wants the machine alone; so does `--whole`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import run_file
import torch
from proof_arms import ARMS, DENSE, FINAL, IMAGES_ONLY, LONGER, TUNED, Setting, fresh, halves, recipe
from proof_table import Row, is_plain, rows, table
from proof_timing import Phase, phases
from timing import machine

from spfde.train import fit
from spfde.train.run_dir import checkpoints
from spfde.train.stats import Epoch

TEXT = Setting(
    dataset="stdlib",
    data_dir="",
    model="gpt_micro",
    optimizer="adamw",
    train=4000,
    held_out=1000,
    batch_size=32,
    lr=1e-3,
    sparse_lr=1e-3,
    crop=0,
    flip=False,
    fuse=False,
)

# What `make demo` trains, on as many images.
DIGITS = Setting(dataset="digits", data_dir="", train=7000, held_out=1000, crop=0, flip=False)


def without(names: Iterable[str], words: Sequence[str]) -> tuple[str, ...]:
    """The names that none of some words is in."""
    return tuple(name for name in names if not any(word in name for word in words))


STAGES: Mapping[str, tuple[Setting, Sequence[str]]] = {
    "tune": (Setting(), TUNED),
    "screen": (Setting(), without(ARMS, [", rate", *LONGER])),
    "final": (Setting(train=0, held_out=0, epochs=20), FINAL),
    "digits-tune": (DIGITS, (DENSE, "DST-EE 90%", "SpFDE 10% + 10%", *TUNED)),
    "digits": (replace(DIGITS, held_out=0), FINAL),
    "text-screen": (TEXT, without(ARMS, [", rate", *LONGER, *IMAGES_ONLY])),
    "text-final": (replace(TEXT, train=12_000, held_out=0), without(FINAL, IMAGES_ONLY)),
}


@dataclass(frozen=True)
class Case:
    """One run."""

    arm: str
    seed: int


class OutOfTime(Exception):
    """The minutes are over; the run that was under way is kept."""


def cases(names: Sequence[str], seeds: int) -> list[Case]:
    """All runs, seed by seed, but those that would have another arm's numbers."""
    return [Case(name, seed) for seed in range(seeds) for name in names if ARMS[name].same_as is None]


def train(case: Case, setting: Setting, out: Path, deadline: float) -> dict[str, Any]:
    """Run one case, or go on with it; what it came to, as its line has it.

    Raises:
        OutOfTime: the deadline, of time.monotonic, passed between two epochs.
    """
    sets, wanted = halves(setting), recipe(case.arm, setting, case.seed, out=str(out), keep_checkpoints=1)

    def on_epoch(record: Epoch) -> None:
        if time.monotonic() > deadline and record.epoch < wanted.epochs - 1:
            raise OutOfTime(f"{case} stopped after epoch {record.epoch}")

    result = fit(
        wanted,
        model=fresh(wanted, sets),
        train_set=sets.train,
        test_set=sets.test,
        resume=bool(checkpoints(out)),
        overwrite=not checkpoints(out),
        on_epoch=on_epoch,
    )
    kept = ("test_accuracy", "test_loss", "train_loss", "samples", "flops", "sieved", "sparsity", "seconds")
    epochs = [
        {name: value for name, value in each.to_dict().items() if name in kept} | {"frozen": len(each.frozen)}
        for each in result.epochs
    ]
    return {**asdict(case), "metric": result.task.metric, "figure": result.figure, "epochs": epochs}


def prove(path: Path, wanted: Iterable[Case], setting: Setting, minutes: float) -> Iterator[str]:
    """Run what the file does not have yet; say what each came to once its line is written.

    Raises:
        ValueError: the file holds runs of another setting.
    """
    deadline = time.monotonic() + 60 * minutes
    done = {(line["run"]["arm"], line["run"]["seed"]) for line in run_file.begin(path, setting) if "run" in line}
    for case in wanted:
        if (case.arm, case.seed) in done:
            continue
        out = path.with_suffix(".runs") / f"{re.sub('[^a-z0-9]+', '-', case.arm.lower())}-{case.seed}"
        try:
            if time.monotonic() > deadline:
                raise OutOfTime(f"before {case}")
            start = time.process_time()
            run = train(case, setting, out, deadline)
        except OutOfTime as end:
            yield f"out of time ({end}): the same command continues"
            return
        about = machine()
        run_file.add(path, {"run": run, "cpu": about["cpu"], "load": about["load"], "date": about["date"]})
        shutil.rmtree(out)
        took = time.process_time() - start
        yield f"{case.arm}, seed {case.seed}: {run['figure']:.4f}, {took:.0f} s of processor time in this process"


def clock(path: Path, names: Sequence[str], setting: Setting, rounds: int, steps: int) -> Iterator[str]:
    """Time the phases of every arm that has a time of its own, round by round; say what each came to.

    Raises:
        ValueError: the file holds runs of another setting.
    """
    run_file.begin(path, setting)
    timed = [name for name in names if not is_plain(name) and ARMS[name].rate == 1]
    for _ in range(rounds):
        for name in timed:
            own = phases(name, setting, steps)
            run_file.add(
                path, {"timing": {"arm": name, "phases": [asdict(phase) for phase in own]}, "machine": machine()}
            )
            yield f"{name}: " + ", ".join(f"{phase.dense_step / phase.step:.2f}x" for phase in own)


def whole(path: Path, names: Sequence[str], setting: Setting) -> Iterator[str]:
    """Time arms in one piece, each from its first epoch to its last, to check what is put together of phases.

    Raises:
        ValueError: the file holds runs of another setting.
    """
    run_file.begin(path, setting)
    sets = halves(setting)
    for name in names:
        wanted = recipe(name, setting, seed=0)
        result = fit(wanted, model=fresh(wanted, sets), train_set=sets.train, test_set=sets.test)
        run_file.add(path, {"whole": {"arm": name, "seconds": result.training_seconds}, "machine": machine()})
        yield f"{name}: {result.training_seconds:.1f} s in one piece"


def read(path: Path) -> tuple[list[Row], str]:
    """What a file's runs and timings come to, and the figure that judges: of the test half, or of held-out samples."""
    head, *kept = run_file.lines(path)
    trained = [line["run"] for line in kept if "run" in line]
    timings = [line["timing"] for line in kept if "timing" in line]
    timed = {
        name: [[Phase(**phase) for phase in each["phases"]] for each in timings if each["arm"] == name]
        for name in dict.fromkeys(each["arm"] for each in timings)
    }
    metric = trained[0]["metric"] if trained else "test figure"
    judged = metric.replace("test", "held-out") if head["setting"]["held_out"] else metric
    return rows(trained, timed, head["setting"]["batch_size"]), judged


def checks(path: Path, found: Sequence[Row]) -> list[str]:
    """What arms took in one piece, beside what is put together of their phases."""
    together = {row.arm: row.seconds for row in found}
    told = []
    for line in (line["whole"] for line in run_file.lines(path) if "whole" in line):
        parts = f"{together[line['arm']]:.1f} s" if together.get(line["arm"]) else "nothing yet"
        told.append(f"{line['arm']}: {line['seconds']:.1f} s in one piece, {parts} put together")
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="where the runs are kept, one JSON line each")
    parser.add_argument("--stage", choices=STAGES, default="screen")
    parser.add_argument("--arms", type=lambda text: text.split(";"), help="of the stage's, separated by ;")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=140, help="after which nothing new is trained")
    parser.add_argument("--timing", type=int, default=0, metavar="ROUNDS", help="time the arms instead, so many times")
    parser.add_argument("--whole", action="store_true", help="time --arms in one piece instead, as a check of that")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th run from the K-th: one of N processes")
    parser.add_argument("--steps", type=int, default=12, help="of an epoch of the timing")
    for name, value in asdict(Setting()).items():
        kind = (lambda text: text == "true") if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the stage's")
    given = parser.parse_args(arguments)
    setting, names = STAGES[given.stage]
    names = given.arms or names
    if unknown := [name for name in names if name not in ARMS]:
        parser.error(f"expected --arms of {'; '.join(ARMS)}, got {'; '.join(unknown)}")
    part, parts = map(int, given.part.split("/"))
    own = {name: getattr(given, name) for name in asdict(setting) if getattr(given, name) is not None}
    setting = replace(setting, **own)
    torch.set_num_threads(1)
    if given.timing:
        told = clock(given.file, names, setting, given.timing, given.steps)
    elif given.whole:
        told = whole(given.file, names, setting)
    else:
        told = prove(given.file, cases(names, given.seeds)[part - 1 :: parts], setting, given.minutes)
    for text in told:
        print(text, flush=True)
    found, judged = read(given.file)
    print(table(found, judged))
    for text in checks(given.file, found):
        print(text)


if __name__ == "__main__":
    main()
