"""How layers gain from threads: 1, 2, 4, ... up to all usable cores.

python benchmarks/scaling.py [--threads 1,2,4] [--rounds 9] [--layers "conv 3x3"] [--sparsity 0.9] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cases import LAYERS as ALL
from cases import Case
from layers import wanted
from measure import measure
from record import Cell, Record
from timing import command, machine, parts

LAYERS = ("linear 2048x2048", "3x3 16x16", "3x3 128x128", "1x1 64x256")


def counts(cores: int) -> list[int]:
    """Thread counts to try: powers of two below `cores`, and `cores`."""
    return [2**i for i in range(cores.bit_length()) if 2**i < cores] + [cores]


def lines(threads: Sequence[int], cells: Sequence[Cell]) -> list[str]:
    """One line per thread count of a layer: gain over the first count, and speed-up over dense at the same count."""
    first = cells[0]
    rows = [f"\n{first.layer} · {first.pattern} · {first.sparsity:.0%}"]
    for count, cell in zip(threads, cells, strict=True):
        shown = [_gain(*pair) for pair in zip(_variants(cell), _variants(first), strict=False)]
        speedup = cell.speedup("native")
        shown += [] if speedup is None else [f"native over dense {speedup:.2f}x"]
        rows.append(f"  {count} thread{'s' if count > 1 else ' '}  " + " · ".join(shown))
    return rows + [f"  absent: {name}: {reason}" for name, reason in first.absent.items()]


def _variants(cell: Cell) -> list[tuple[str, float]]:
    names = (cell.best_dense(), "native", "sparseprop")
    return [(name, seconds) for name in names if (seconds := cell.median(name))]


def _gain(variant: tuple[str, float], first: tuple[str, float]) -> str:
    return f"{variant[0]} {variant[1] * 1e3:.2f} ms ({first[1] / variant[1]:.2f}x)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints how dense layer, native kernel and SparseProp gain from threads."""
    usable = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=lambda text: [int(n) for n in parts(text)], default=counts(usable))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=parts, default=LAYERS, help="parts of names, comma-separated")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--json", type=Path, help="also write cells, named by layer and threads")
    given = parser.parse_args(arguments)
    about, named = machine(), []
    for layer in (each for each in ALL if any(part in str(each) for part in given.layers)):
        cells = []
        # One count after the other: libgomp builds its pool anew at each change.
        for count in given.threads:
            torch.set_num_threads(count)
            torch.compiler.reset()  # its limit on recompilations counts all layers of a process together
            case = Case(layer, given.pattern, given.sparsity)
            cells.append(measure(case, given.rounds, "cpu", wanted(("native", "sparseprop"))))
        print("\n".join(lines(given.threads, cells)), flush=True)
        named += [replace(cell, layer=f"{layer} t{count}") for count, cell in zip(given.threads, cells, strict=True)]
    if given.json:
        Record(about, command(), given.rounds, named).write(given.json)


if __name__ == "__main__":
    main()
