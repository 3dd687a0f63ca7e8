"""The forward pass of a layer alone, for the suites of single ops."""

from __future__ import annotations

import pytest
import torch
import variants
from cases import Case, Layer

SPARSITIES = (0.8, 0.9, 0.95)
ROUNDS = {"rounds": 15, "warmup_rounds": 3}


def variants_of(layers: list[Layer]) -> list:
    """Every (layer, name of a variant) as pytest parameters."""
    pairs = [(layer, name) for layer in layers for name in variants.names(Case(layer), "cpu")]
    # torch.compile warns about itself; a run of the tests makes errors of warnings.
    marks = {True: [pytest.mark.filterwarnings("default")], False: []}
    return [pytest.param(*pair, id=f"{pair[0]} {pair[1]}", marks=marks["compiled" in pair[1]]) for pair in pairs]


def variant(layer: Layer, name: str, sparsity: float) -> variants.Variant:
    """The variant called `name`; skips the test where it is absent."""
    torch.compiler.reset()
    case = Case(layer, sparsity=sparsity)
    try:
        return variants.variant(case, name, variants.sparse_layer(case))
    except variants.Absent as absent:
        pytest.skip(str(absent))


def run(benchmark, op: str, layer: Layer, name: str, sparsity: float) -> None:
    """Times the forward pass; pytest-benchmark shows the variants of a layer beside each other."""
    benchmark.group = f"{op} forward {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, variant=name)
    chosen = variant(layer, name, sparsity)
    with torch.no_grad():
        benchmark.pedantic(chosen.module, (chosen.x,), **ROUNDS)


def gradient(benchmark, op: str, layer: Layer, name: str, sparsity: float, of: str) -> None:
    """Times one gradient alone: of the "input", or of the "weight" and bias."""
    benchmark.group = f"{op} {of} gradient {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, variant=name)
    chosen = variant(layer, name, sparsity)
    x = chosen.x.detach().requires_grad_(of == "input")
    parameters = list(chosen.module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(of == "weight")
    y, wanted = chosen.module(x), [x] if of == "input" else parameters
    benchmark.pedantic(torch.autograd.grad, (y, wanted, chosen.dy), {"retain_graph": True}, **ROUNDS)
