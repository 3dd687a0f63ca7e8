"""Times sparse layers on a GPU beside cuBLAS, cuDNN and torch's own sparse products.

    PYTHONPATH=.:benchmarks python -m gpu.run [--seconds 300] [--rounds 20] [--out folder] [--cases "conv,block 64"]

`benchmarks/gpu/run.sh` sets the paths and does the rest: build, tests, sanitizer. Timings are of the device alone, in
turn, out of a cold L2 cache. What the time does not suffice for is named in the record.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from gpu.cases import Case, cases
from gpu.clock import Budget, interleaved
from gpu.layers import Absent, calls, problem
from gpu.record import Cell, Record, line

import spfde

RESULTS = Path(__file__).resolve().parents[1] / "results"
FACTS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")


def machine() -> dict[str, Any]:
    """What a measurement has to name: GPU, driver, versions, clocks, date."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "l2_bytes": device.L2_cache_size,
        "before": nvidia_smi(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "spfde": spfde.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, power and temperature at the moment; empty where nvidia-smi does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(FACTS, (part.strip() for part in answer.splitlines()[0].split(",")), strict=False))


def measure(case: Case, rounds: int) -> Cell:
    """All ways of a case, part by part, timed in turn."""
    given, ways, absent = problem(case), {}, {}
    for way in case.ways:
        try:
            ways[way] = calls(given, way)
        except Absent as reason:
            absent[way] = str(reason)
    device: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    host: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for part in dict.fromkeys(part for parts in ways.values() for part in parts):
        timed, called = interleaved({way: parts[part] for way, parts in ways.items() if part in parts}, rounds)
        for way in timed:
            device[way][part], host[way][part] = timed[way], called[way]
    return Cell(case, device, host, absent)


def run(
    chosen: Sequence[Case], budget: Budget, about: dict[str, Any], folder: Path, timed: Callable[[Case], Cell]
) -> tuple[Record, Path]:
    """Measures case after case while there is time, and writes what there is after each of them.

    A case is begun if as much time is left as the longest one before it took.
    """
    cells: list[Cell] = []
    longest, names = 0.0, [str(case) for case in chosen]
    record = Record(about, cells, names)
    path = record.write(folder)
    for index, case in enumerate(chosen):
        before = budget.left
        if not budget.allows(longest):
            break
        cells.append(timed(case))
        longest = max(longest, before - budget.left)
        record = Record(about, cells, names[index + 1 :])
        path = record.write(folder)
        print(line(cells[-1]), flush=True)
    return record, path


def select(filters: Sequence[str]) -> list[Case]:
    """The cases whose name contains all of the filters."""
    chosen = [case for case in cases() if all(part in str(case) for part in filters)]
    if not chosen:
        raise SystemExit(f"expected --cases to match one of {', '.join(map(str, cases()))}, got {', '.join(filters)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line per case and writes every raw timing as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cases", type=lambda text: [part.strip() for part in text.split(",")], default=[])
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA")
    torch.backends.cudnn.benchmark = True
    budget, about = Budget(given.seconds), machine()
    record, path = run(select(given.cases), budget, about, given.out, lambda case: measure(case, given.rounds))
    about["after"] = nvidia_smi()
    record.write(given.out)
    missed = f", out of time for {len(record.unfinished)}" if record.unfinished else ""
    print(f"{len(record.cells)} cases{missed}: {path}")


if __name__ == "__main__":
    main()
