"""Whole layers, forward + backward: sparse beside the best dense layer and the peers, and the targets.

    python benchmarks/layers.py [--threads 2] [--rounds 9] [--layers "conv 3x3,b512"] [--json runs/bench/layers.json]

Every way of a layer is first checked against the dense layer with the same weights, then all are timed in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import forward
import pytest
import torch
from cases import (
    LAYERS,
    PATTERNS,
    SPARSITIES,
    Absent,
    Case,
    Layer,
    check,
    dense_case,
    dense_names,
    expected,
    sparse_case,
    sparse_names,
    sparsified,
)
from record import Cell, Record
from table import block, summary
from timing import command, interleaved, machine, parts


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("layer, name", forward.ways(LAYERS))
def test_forward_backward(benchmark, layer, name, sparsity):
    benchmark.group = f"forward + backward {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, way=name)
    benchmark.pedantic(forward.case(layer, name, sparsity).step, **forward.ROUNDS)


@dataclass(frozen=True)
class Options:
    """What to time: names that contain one of `variants`, all if there is none."""

    rounds: int = 9
    variants: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether to time the way called `name`; dense ones always, as everything is relative to them."""
        return name.startswith("dense") or not self.variants or any(part in name for part in self.variants)


def measure(layer: Layer, pattern: str, sparsities: Sequence[float], options: Options) -> list[Cell]:
    """One cell per sparsity."""
    torch.compiler.reset()  # its limit on recompilations counts all layers of a process together
    makers = {name: partial(dense_case, layer, name) for name in dense_names(layer) if options.wants(name)}
    dense, absent = _checked(makers, expected(layer))
    return [_cell(layer, pattern, sparsity, options, dense, absent) for sparsity in sparsities]


def _cell(
    layer: Layer, pattern: str, sparsity: float, options: Options, dense: dict[str, Case], absent: dict[str, str]
) -> Cell:
    names = [name for name in sparse_names(layer, pattern) if options.wants(name)]
    cases, density = {}, 1 - sparsity
    try:
        sparse = sparsified(layer, sparsity, pattern)
    except Absent as reason:
        absent = absent | {name: str(reason) for name in names}
    else:
        density = 1 - sparse.sparsity
        makers = {name: partial(sparse_case, layer, name, sparse) for name in names}
        cases, without = _checked(makers, expected(layer, sparse))
        absent = absent | without
    # Without a sparse way there is nothing to compare the dense layer with.
    steps = {name: case.step for name, case in (dense | cases).items()} if cases else {}
    seconds = interleaved(steps, options.rounds)
    return Cell(
        str(layer), layer.kind, layer.group, layer.lanes, pattern, sparsity, density, seconds, absent
    )  # fmt: skip


def _checked(
    makers: Mapping[str, Callable[[], Case]], wanted: tuple[torch.Tensor, ...]
) -> tuple[dict[str, Case], dict[str, str]]:
    """The ways that can be made and give what is wanted, and why the others are absent."""
    cases, absent = {}, {}
    for name, make in makers.items():
        try:
            case = make()
            check(case, wanted)
            cases[name] = case
        except Absent as reason:
            absent[name] = str(reason)
    return cases, absent


def select(filters: Sequence[str]) -> list[Layer]:
    """The layers whose name contains one of the filters, all if there is none."""
    chosen = [layer for layer in LAYERS if not filters or any(part in str(layer) for part in filters)]
    if not chosen:
        raise SystemExit(f"expected --layers to match one of {', '.join(map(str, LAYERS))}, got {', '.join(filters)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints speed-up over the best dense layer, efficiency and targets of every layer, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--layers", type=parts, default=[], help="parts of names, comma-separated: conv 3x3,b512")
    parser.add_argument("--sparsities", type=lambda text: [float(s) for s in parts(text)], default=SPARSITIES)
    parser.add_argument("--patterns", type=parts, default=PATTERNS, help="comma-separated: unstructured,block:4x1")
    parser.add_argument("--variants", type=parts, default=[], help="parts of names: native,sparseprop")
    parser.add_argument("--json", type=Path, help="also write machine, medians and quartiles")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    options, about, cells = Options(given.rounds, given.variants), machine(), []
    print(" · ".join(f"{key} {about[key]}" for key in ("cpu", "threads", "isa", "torch", "spfde", "date")))
    for layer in select(given.layers):
        for pattern in given.patterns:
            block_cells = measure(layer, pattern, given.sparsities, options)
            print(block(block_cells), flush=True)
            cells += block_cells
            if given.json:
                Record(about, command(), given.rounds, cells).write(given.json)  # each time: a long run may be stopped
    print(summary(cells))


if __name__ == "__main__":
    main()
