"""A layer dense and sparse, and its products as calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from spfde.bench.subject import Layer
from spfde.bench.variant import Maker, Variant, bytes_of, compiled_form, dense_names
from spfde.kernels import registry
from spfde.kernels.dispatch.rule import FALLBACK
from spfde.nn import SparseLayer
from spfde.profiling.dense_baseline import CHANNELS_LAST
from spfde.tuning.layer import Timed, backward, forward, step

TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 2e-2}  # of the output's norm


def kernels() -> dict[str, str]:
    """The sparse variants of a layer: "auto", the kernels that some device is offered, and the masked dense product."""
    sparse = [name for name in registry.names() if registry.skips_zeros(name) and registry.get(name).devices]
    return {"auto": "auto", **{name: name for name in sparse}, "masked dense": FALLBACK}


def of_layer(
    layer: Layer, pattern: str, sparsities: Sequence[float], dtype: str, device: str, compiled: bool, every: bool
) -> Iterator[Maker]:
    """(variant, pattern, sparsity, what makes it) of a layer. every: each kernel, not only the one that is chosen."""
    for name in dense_names(isinstance(layer.module, nn.Conv2d), compiled):
        yield name, "dense", 0.0, lambda name=name: _dense_layer(layer, name, dtype, device)
    for sparsity in sparsities:
        for name, kernel in kernels().items() if every else [("auto", "auto")]:
            make = lambda s=sparsity, n=name, k=kernel: _sparse_layer(layer, pattern, s, n, k, dtype, device)  # noqa: E731
            yield name, pattern, sparsity, make


def _dense_layer(layer: Layer, name: str, dtype: str, device: str) -> Variant:
    module, x = layer.dense(device, dtype), layer.input(device, dtype)
    if name.endswith(CHANNELS_LAST):
        module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    wrap = compiled_form if name.endswith("compiled") else lambda each: each
    return Variant(name, _calls(module, x, wrap), size=bytes_of(module))


def _sparse_layer(
    layer: Layer, pattern: str, sparsity: float, name: str, kernel: str, dtype: str, device: str
) -> Variant:
    sparse, x = layer.sparse(sparsity, pattern, device, dtype), layer.input(device, dtype)
    if device == "cuda" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    sparse.kernel = kernel
    check(layer, sparse, x, dtype, device)
    choice = sparse.choice
    return Variant(
        name, _calls(sparse, x), pattern=pattern, sparsity=sparsity, density=1 - sparse.sparsity, kernel=choice.kernel,
        reason=choice.reason, size=bytes_of(sparse),
    )  # fmt: skip


def check(layer: Layer, sparse: SparseLayer, x: Tensor, dtype: str, device: str) -> None:
    """Raises ValueError if the sparse layer does not compute what the dense one with its weights does."""
    dense = layer.dense(device, dtype)
    with torch.no_grad():
        dense.weight.copy_(sparse.dense_weight())
        wanted, y = dense(x), sparse(x)
    error = float((y.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))
    if not error <= TOLERANCE[dtype]:
        raise ValueError(f"wrong output: relative error {error:.1e} against the dense layer")


def _calls(module: nn.Module, x: Tensor, wrap: Callable[[nn.Module], Any] = lambda each: each) -> dict[str, Timed]:
    """The three products alone and the step. A copy without trained weights has an input gradient alone."""
    fixed, x = deepcopy(module).requires_grad_(False), x.detach()
    live = x.clone(memory_format=torch.preserve_format).requires_grad_()
    weights, run, run_fixed = list(module.parameters()), wrap(module), wrap(fixed)
    return {
        "forward": forward(run, x),
        "input_grad": backward(run_fixed, live, [live]),
        "weight_grad": backward(run, x, weights),
        "step": step(run, live, [live, *weights]),
    }
