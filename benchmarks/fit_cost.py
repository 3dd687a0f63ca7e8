"""Fits the cost model's constants (spfde/kernels/cost.py) to timings taken by layers.py.

    python benchmarks/layers.py --threads 1 --json layers.json
    python benchmarks/fit_cost.py layers.json [more.json]

Least squares on the logarithm of native / best dense seconds. It prints what to put into cost.py for the timings'
instruction set, and how far the fit is off. Needs scipy, which scikit-learn brings.
"""

from __future__ import annotations

import argparse
import json
from math import exp, log, sqrt
from pathlib import Path

from cases import CONV, LINEAR, Layer
from scipy.optimize import least_squares

from spfde.kernels.choice import Problem, bucket_of
from spfde.kernels.cost import Cost, ratio
from spfde.nn import SparseConv2d

START, LOWEST, HIGHEST = Cost(2, 0.9, 10, 0.05), Cost(0, 0, 0, 0), Cost(100, 1, 1000, 1)
LAYERS = {str(layer): layer for layer in [*LINEAR, *CONV]}


def problem(layer: Layer, sparsity: float) -> Problem:
    """What the dispatch rule sees of a timed layer."""
    dense = layer.dense()
    shape = tuple(dense.weight.shape)
    bucket = bucket_of(round((1 - sparsity) * dense.weight.numel()), dense.weight.numel())
    if layer.kind == "linear":
        return Problem(layer.batch, shape, bucket)
    window = SparseConv2d.from_dense(dense).window
    return Problem(layer.batch, shape, bucket, window=window, size=window.output_size(layer.size, layer.size))


def measured(row: dict) -> float:
    """Seconds of the native kernel over those of the faster dense layout."""
    return row["native"] / min(seconds for name, seconds in row.items() if name.startswith("dense"))


def errors(constants: Cost, rows: list[tuple[Problem, float]]) -> list[float]:
    """log(predicted / measured) of each row."""
    return [log(ratio(problem, constants) / value) for problem, value in rows]


def fit(rows: list[tuple[Problem, float]]) -> Cost:
    """The constants with the least squared error."""
    result = least_squares(lambda p: errors(Cost(*p), rows), START, bounds=(LOWEST, HIGHEST), x_scale=START)
    return Cost(*(round(float(f"{value:.3g}"), 6) for value in result.x))


def main() -> None:
    """Prints the constants of each op, then measured and predicted speed-up of each layer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", nargs="+", type=Path, help="files written by layers.py --json on one instruction set")
    files = [json.loads(path.read_text()) for path in parser.parse_args().json]
    isas = sorted({file["environment"]["native"]["isa"] for file in files})
    if len(isas) != 1:
        parser.error(f"expected timings of one instruction set, got {', '.join(isas)}, try one call for each")
    timed = [row for file in files for row in file["seconds"]]
    for op, kind in (("linear", "linear"), ("conv2d", "conv")):
        own = [row for row in timed if LAYERS[row["layer"]].kind == kind]
        rows = [(problem(LAYERS[row["layer"]], row["sparsity"]), measured(row)) for row in own]
        constants = fit(rows)
        off = errors(constants, rows)
        average, most = exp(sqrt(sum(e * e for e in off) / len(off))), exp(max(map(abs, off)))
        print(f'{isas[0]}: "{op}": {constants}')
        print(f"  off by {average:.2f}x on average, {most:.2f}x at most")
        for row, (_, value), error in zip(own, rows, off, strict=True):
            predicted = exp(-error) / value
            print(
                f"  {row['layer']:34} {row['sparsity']:4.0%}  measured {1 / value:5.2f}x  predicted {predicted:5.2f}x"
            )


if __name__ == "__main__":
    main()
