"""Sparse layers beside the best dense layer and the peers, on a CPU or a GPU, and what was asked of them.

    python benchmarks/layers.py [--threads 2] [--rounds 9] [--cases "conv 3x3,90%"] [--json runs/bench/layers.json]
    python benchmarks/layers.py --device cuda [--seconds 300] [--json FILE] [--resume FILE]
    python benchmarks/plot.py FILE              python benchmarks/targets.py FILE

Every variant of a case is first checked against the dense layer with the same weights, then all are timed in turn: on a
CPU forward + backward, on a GPU the parts of a step apart, on the device alone and out of a cold L2 cache. What the
time does not suffice for is named in the record. `benchmarks/gpu/run.sh` does the rest on a lent GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import forward
import measure
import pytest
import torch
from cases import LAYERS, PATTERNS, SPARSITIES, Case, cpu_cases, gpu_layers
from networks import NetworkCase, gpu_networks
from record import Cell, Record
from table import block, summary
from targets import GPU_TARGETS
from timing import command, machine, nvidia_smi, parts, record_name

from spfde.tuning.timing import TimeLimit

RESULTS = Path(__file__).parent / "results"
ROUNDS = {"cpu": 9, "cuda": 20}
START = 10  # seconds that a new process takes to begin


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("layer, name", forward.variants_of(LAYERS))
def test_forward_backward(benchmark, layer, name, sparsity):
    benchmark.group = f"forward + backward {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, variant=name)
    benchmark.pedantic(forward.variant(layer, name, sparsity).step, **forward.ROUNDS)


def wanted(variants: Sequence[str]) -> Callable[[str], bool]:
    """Whether a variant's name contains one of the filters; all do if there is none."""
    return lambda name: not variants or any(part in name for part in variants)


def select(cases: Sequence[Case | NetworkCase], filters: Sequence[str]) -> list[Case | NetworkCase]:
    """The cases whose name contains all of the filters."""
    chosen = [case for case in cases if all(part in str(case) for part in filters)]
    if not chosen:
        raise SystemExit(f"expected --cases to match one of {', '.join(map(str, cases))}, got {', '.join(filters)}")
    return chosen


def cases_of(device: str, patterns: Sequence[str], sparsities: Sequence[float]) -> list[Case | NetworkCase]:
    """What is timed there."""
    if device == "cpu":
        return cpu_cases(LAYERS, patterns, sparsities)
    first, nets = [target.case for target in GPU_TARGETS], gpu_networks()
    layers = gpu_layers(first)
    asked = len(dict.fromkeys(first))
    return [*layers[:asked], *nets, *layers[asked:]]


def on_cpu(
    cases: Sequence[Case], rounds: int, wants: Callable[[str], bool], path: Path | None, compiled: bool = True
) -> Record:
    """Times cases and prints a table for each layer and pattern, then the targets."""
    record = Record(machine(), command(), rounds, [])
    print(" · ".join(f"{key} {record.machine[key]}" for key in ("cpu", "threads", "isa", "torch", "spfde", "date")))
    for group in dict.fromkeys((case.layer, case.pattern) for case in cases):
        torch.compiler.reset()  # its limit on recompilations counts all layers of a process together
        some = [case for case in cases if (case.layer, case.pattern) == group]
        cells: list[Cell] = [measure.measure(case, rounds, "cpu", wants, compiled) for case in some]
        print(block(cells), flush=True)
        record = replace(record, cells=[*record.cells, *cells])
        if path:
            record.write(path)  # each time: a long run may be stopped
    print(summary(record.cells))
    return record


def on_gpu(given: argparse.Namespace, cases: Sequence[Case | NetworkCase]) -> Record:
    """Times cases while there is time. A device that is lost goes on in a new process.

    Raises:
        SystemExit: there is no GPU, or something failed.
    """
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA")
    torch.backends.cudnn.benchmark = True
    limit = TimeLimit(given.seconds)
    before = Record.read(given.resume) if given.resume else Record(machine("cuda"), command(), given.rounds, [])
    path = given.resume or given.json or RESULTS / record_name(before.machine)
    chosen = [case for case in cases if not given.resume or str(case) in before.unfinished]
    wants = wanted(given.variants)
    timed = lambda case: measure.measure(case, given.rounds, "cuda", wants)  # noqa: E731
    record = measure.run(chosen, limit, before, path, timed, measure.alive)
    if record.unfinished and not measure.alive():
        print("the device is lost to this process, going on in a new one", flush=True)
        left = ["--seconds", str(max(0.0, limit.left - START)), "--rounds", str(given.rounds), "--resume", str(path)]
        os.execv(sys.executable, [sys.executable, __file__, "--device", "cuda", *left])
    record = replace(record, machine={**record.machine, "after": nvidia_smi()})
    record.write(path)
    missed = f", out of time for {len(record.unfinished)}" if record.unfinished else ""
    print(f"{len(record.cells)} cases{missed}: {path}")
    if record.failures:
        raise SystemExit(f"{len(record.failures)} failures, see above")
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints speed-up over the best dense layer, efficiency and targets, and writes every figure as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--rounds", type=int, help="timings of each variant, in turn (cpu 9, cuda 20)")
    parser.add_argument("--cases", type=parts, default=[], help="parts of names, comma-separated: conv 3x3,90%%")
    parser.add_argument("--sparsities", type=lambda text: [float(s) for s in parts(text)], default=SPARSITIES)
    parser.add_argument("--patterns", type=parts, default=PATTERNS, help="on a CPU: unstructured,block:4x1")
    parser.add_argument("--variants", type=parts, default=[], help="parts of names: native,sparseprop")
    parser.add_argument("--eager", action="store_true", help="on a CPU: leave out the compiled dense layers")
    parser.add_argument("--seconds", type=float, default=inf, help="the time that it may take on a GPU")
    parser.add_argument("--json", type=Path, help="the record (on a GPU by default in benchmarks/results)")
    parser.add_argument("--resume", type=Path, help="a record of a GPU: goes on with what is unfinished there")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or ROUNDS[given.device]
    cases = select(cases_of(given.device, given.patterns, given.sparsities), given.cases)
    if given.device == "cuda":
        on_gpu(given, cases)
        return
    torch.set_num_threads(given.threads)
    on_cpu(cases, given.rounds, wanted(given.variants), given.json, not given.eager)


if __name__ == "__main__":
    main()
