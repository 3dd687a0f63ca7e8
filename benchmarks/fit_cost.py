"""Fits the cost model's constants (spfde/kernels/dispatch/cost.py) to timings taken by layers.py and sweep.py.

    python benchmarks/layers.py --threads 2 --json layers.json
    python benchmarks/sweep.py --threads 2 --both --json sweep.json
    python benchmarks/fit_cost.py layers.json sweep.json

Least squares on native / best dense seconds (eager ones: the masked dense route is not compiled), not on logarithms:
what counts is where the two meet. Only for what the dispatch rule decides: at least 64 positions, no depthwise layers,
which always run native. It prints what to put into cost.py for the timings' instruction set, and how far the fit is
off. `tall` stays at its start where no blocks were timed. Needs scipy, which scikit-learn brings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from cases import CONV, LINEAR, Layer
from record import Cell, Record
from scipy.optimize import least_squares
from sweep import BATCH, IMAGES, LANES, layers_of
from sweep import DENSE as AUTO_MASKED
from sweep import NATIVE as AUTO_NATIVE

import spfde
from spfde.kernels.dispatch.cost import MASKED, Cost, Masked, masked, ratio
from spfde.kernels.problem import Problem, bucket_of
from spfde.nn import SparseConv2d

START, LOWEST, HIGHEST = Cost(2, 0.9, 10, 0.05, 1.25), Cost(0, 0, 0, 0, 0), Cost(100, 1, 1000, 1, 100)


def known() -> dict[str, Layer]:
    """The layers of layers.py and of sweep.py at its own batch, by name."""
    swept = [layer for model, image in IMAGES.items() for layer in layers_of(spfde.models.create(model), image, BATCH)]
    return {str(layer): layer for layer in [*LINEAR, *CONV, *swept]}


@dataclass(frozen=True)
class Row:
    """A timed layer: what the dispatch rule sees of it, and a kernel's over best dense seconds."""

    name: str
    problem: Problem
    ratio: float


def row(cell: Cell, layers: dict[str, Layer], kernel: Sequence[str] = ("native", AUTO_NATIVE)) -> Row | None:
    """A cell for a kernel by its names; None where it was not timed or the rule decides nothing."""
    timed, layer = [seconds for name in kernel if (seconds := cell.median(name))], layers[cell.layer]
    if not timed or layer.groups > 1 or layer.lanes < LANES:
        return None
    dense = min(seconds for name in ("dense", "dense channels_last") if (seconds := cell.median(name)))
    name = f"{cell.layer} {cell.pattern} {cell.sparsity:.0%}"
    return Row(name, problem(layer, cell.density, cell.pattern), timed[0] / dense)


def problem(layer: Layer, density: float, pattern: str) -> Problem:
    """What the dispatch rule sees of a layer."""
    dense = layer.dense()
    size = dense.weight.numel()
    height, width = map(int, pattern.removeprefix("block:").split("x")) if pattern.startswith("block:") else (1, 1)
    block = (height, width) if height > 1 else (1, 1)
    linear = Problem(layer.batch, tuple(dense.weight.shape), bucket_of(round(density * size), size), block)
    if layer.kind == "linear":
        return linear
    window = SparseConv2d.from_dense(dense).window
    return linear._replace(window=window, size=window.output_size(layer.size, layer.size))


def errors(cost: Cost, rows: list[Row]) -> list[float]:
    """Predicted less measured ratio of each row."""
    return [ratio(row.problem, cost) - row.ratio for row in rows]


def fit(rows: list[Row]) -> Cost:
    """The constants with the least squared error."""
    result = least_squares(lambda p: errors(Cost(*p), rows), START, bounds=(LOWEST, HIGHEST), x_scale=START)
    return Cost(*(float(f"{value:.3g}") for value in result.x))


def fit_masked(rows: list[Row]) -> Masked:
    """Those of the masked dense route."""
    result = least_squares(
        lambda p: [masked(row.problem, Masked(*p)) - row.ratio for row in rows], MASKED, x_scale=MASKED
    )
    return Masked(*(float(f"{value:.3g}") for value in result.x))


def main() -> None:
    """Prints the constants, and what was measured and predicted of each layer, in shares of the dense time."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", nargs="+", type=Path, help="written by --json on one instruction set")
    records = [Record.read(path) for path in parser.parse_args().json]
    isas = sorted({record.machine["isa"] for record in records})
    if len(isas) != 1:
        parser.error(f"expected timings of one instruction set, got {', '.join(isas)}, try one call for each")
    layers = known()
    timed = [timed for record in records for cell in record.cells if (timed := row(cell, layers))]
    for op in ("linear", "conv2d"):
        rows = [timed_row for timed_row in timed if timed_row.problem.op == op]
        if not rows:
            continue
        cost = fit(rows)
        off = errors(cost, rows)
        print(f'{isas[0]}: "{op}": {cost}')
        print(f"  off by {sqrt(sum(e * e for e in off) / len(off)):.2f} of the dense time on average")
        for timed_row, error in zip(rows, off, strict=True):
            measured = timed_row.ratio
            print(f"  {timed_row.name:44}  measured {measured:5.2f}  predicted {measured + error:5.2f}")
    names = ("masked", AUTO_MASKED)
    routes = [timed for record in records for cell in record.cells if (timed := row(cell, layers, names))]
    if routes:
        print(f"{isas[0]}: {fit_masked(routes)}")


if __name__ == "__main__":
    main()
