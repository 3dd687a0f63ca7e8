"""Times sparse layers on a GPU beside cuBLAS, cuDNN and torch's own sparse products.

    PYTHONPATH=.:benchmarks python -m gpu.run [--seconds 300] [--rounds 20] [--out folder] [--cases "conv,block 64"]
    PYTHONPATH=.:benchmarks python -m gpu.targets RECORD.json   # what was asked for, and what was measured
    PYTHONPATH=.:benchmarks python -m gpu.plot RECORD.json

`benchmarks/gpu/run.sh` sets the paths and does the rest: build, tests, sanitizer. Timings are of the device alone, in
turn, out of a cold L2 cache. What the time does not suffice for is named in the record.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from gpu import layers, networks
from gpu.cases import Case, Network, cases
from gpu.clock import Budget, interleaved
from gpu.layers import Absent
from gpu.record import Cell, Record, line

import spfde

RESULTS = Path(__file__).resolve().parents[1] / "results"
FACTS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")
START = 10  # seconds that a new process takes to begin


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


def measure(case: Case | Network, rounds: int, device: str = "cuda") -> Cell:
    """All ways of a case, part by part, timed in turn. Whatever goes wrong is in the cell: the run goes on."""
    ways, absent, failed = {}, {}, {}
    times: dict[str, dict[str, list[float]]] = {}
    host: dict[str, dict[str, list[float]]] = {}
    kind, auto, reason = networks if isinstance(case, Network) else layers, "", ""
    try:
        given = kind.problem(case, device)
    except Exception as error:  # from here on whatever is raised: what else is to be measured must not be lost
        return Cell(case, {}, {}, {}, {"all of it": _named(error)})
    for way in case.ways:
        try:
            ways[way] = kind.calls(given, way)
        except Absent as why:
            absent[way] = str(why)
        except Exception as error:
            failed[way] = _named(error)
    for part in dict.fromkeys(part for parts in ways.values() for part in parts):
        try:
            timed, called = interleaved({way: parts[part] for way, parts in ways.items() if part in parts}, rounds)
        except Exception as error:
            failed[part] = _named(error)
            continue
        for way in timed:
            times.setdefault(way, {})[part], host.setdefault(way, {})[part] = timed[way], called[way]
    try:
        auto, reason = kind.chosen(given)
    except Exception as error:
        failed["auto"] = _named(error)
    return Cell(case, times, host, absent, failed, auto, reason)


def _named(error: Exception) -> str:
    traceback.print_exception(error)
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def run(
    chosen: Sequence[Case | Network],
    budget: Budget,
    before: Record,
    folder: Path,
    timed: Callable[[Case | Network], Cell],
    alive: Callable[[], bool],
) -> tuple[Record, Path]:
    """Measures case after case while there is time, and writes what there is after each of them.

    A case is begun if as much time is left as the longest one before it took. before: what was measured already.
    alive: asked after a failure; a device that no longer answers ends the run.
    """
    longest, names = 0.0, [str(case) for case in chosen]
    record = replace(before, unfinished=names)
    path = record.write(folder)
    for index, case in enumerate(chosen):
        start = budget.left
        if not budget.allows(longest):
            break
        cell = timed(case)
        longest = max(longest, start - budget.left)
        record = replace(record, cells=[*record.cells, cell], unfinished=names[index + 1 :])
        path = record.write(folder)
        print(line(cell), flush=True)
        if cell.failed and not alive():
            break
    return record, path


def alive() -> bool:
    """Whether the device still answers: after a bad access it refuses everything, for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def select(filters: Sequence[str]) -> list[Case | Network]:
    """The cases whose name contains all of the filters."""
    chosen = [case for case in cases() if all(part in str(case) for part in filters)]
    if not chosen:
        raise SystemExit(f"expected --cases to match one of {', '.join(map(str, cases()))}, got {', '.join(filters)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line per case and writes every raw timing as JSON. Exit status 1: something failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="the time it may take (%(default)g)")
    parser.add_argument("--rounds", type=int, default=20, help="timings of each way, in turn (%(default)d)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the record's folder (benchmarks/results)")
    parser.add_argument(
        "--cases", type=lambda text: [part.strip() for part in text.split(",")], default=[],
        help="words of the cases to time, with commas, such as 'conv,block 64' (all)",
    )  # fmt: skip
    parser.add_argument("--resume", type=Path, help="a record: goes on with what is unfinished there")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA")
    torch.backends.cudnn.benchmark = True
    budget = Budget(given.seconds)
    before = Record.read(given.resume) if given.resume else Record(machine(), [])
    chosen = [case for case in select(given.cases) if not given.resume or str(case) in before.unfinished]
    record, path = run(chosen, budget, before, given.out, lambda case: measure(case, given.rounds), alive)
    if record.unfinished and not alive():
        print("the device is lost to this process, going on in a new one", flush=True)
        rest = ["--seconds", str(max(0.0, budget.left - START)), "--rounds", str(given.rounds), "--out", str(given.out)]
        os.execv(sys.executable, [sys.executable, "-m", "gpu.run", *rest, "--resume", str(path)])
    record = replace(record, machine={**record.machine, "after": nvidia_smi()})
    record.write(given.out)
    missed = f", out of time for {len(record.unfinished)}" if record.unfinished else ""
    print(f"{len(record.cells)} cases{missed}: {path}")
    if record.failures:
        raise SystemExit(f"{len(record.failures)} failures, see above")


if __name__ == "__main__":
    main()
