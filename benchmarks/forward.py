"""The forward pass of a layer alone, for the suites of single ops."""

from __future__ import annotations

import pytest
import torch
from cases import Absent, Case, Layer, dense_case, dense_names, sparse_case, sparse_names, sparsified

SPARSITIES = (0.8, 0.9, 0.95)
ROUNDS = {"rounds": 15, "warmup_rounds": 3}


def ways(layers: list[Layer]) -> list:
    """Every (layer, name of a way) as pytest parameters."""
    pairs = [(layer, name) for layer in layers for name in (*dense_names(layer), *sparse_names(layer, "unstructured"))]
    # torch.compile warns about itself; a run of the tests makes errors of warnings.
    marks = {True: [pytest.mark.filterwarnings("default")], False: []}
    return [pytest.param(*pair, id=f"{pair[0]} {pair[1]}", marks=marks["compiled" in pair[1]]) for pair in pairs]


def case(layer: Layer, name: str, sparsity: float) -> Case:
    """The way called `name`; skips the test where it is absent."""
    torch.compiler.reset()
    try:
        return dense_case(layer, name) if "dense" in name else sparse_case(layer, name, sparsified(layer, sparsity))
    except Absent as absent:
        pytest.skip(str(absent))


def run(benchmark, op: str, layer: Layer, name: str, sparsity: float) -> None:
    """Times the forward pass; pytest-benchmark shows the ways of a layer beside each other."""
    benchmark.group = f"{op} forward {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, way=name)
    chosen = case(layer, name, sparsity)
    with torch.no_grad():
        benchmark.pedantic(chosen.module, (chosen.x,), **ROUNDS)
