"""Every way to compute a case, on a CPU or a GPU, and the parts of a training step that are timed.

All variants of a case do the same work on the same random data, and each is compared with the dense layer that has the
same weights before it is timed. Each has the memory layout that it likes best, so that no copy is charged to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from cases import Case, Layer
from torch import Tensor, nn

import spfde
from spfde.kernels import triton

# The kernel of a variant; "2:4" is torch's product for the weights that a layer of ours stores.
KERNELS = {
    "native": "native", "triton": "triton", "cuda": "cuda", "2:4": "semi_structured", "masked": "dense", "auto": "auto",
}  # fmt: skip
OURS = {"cpu": ("native", "masked", "auto"), "cuda": ("triton", "masked")}  # on a GPU, what "auto" is is only named
PARTS = ("forward", "input gradient", "weight gradient", "step", "frozen step", "frozen prefix")
TOLERANCE = {
    "float32": 1e-3,
    "tf32": 5e-3,
    "float16": 5e-3,
    "bfloat16": 2e-2,
}  # of a norm: a wrong index is far above it

Parts = Mapping[str, Callable[[], tuple[Tensor, ...]]]


class Absent(Exception):
    """A variant cannot be timed here; the message says why."""


@dataclass(frozen=True)
class Variant:
    """A module with its input and output gradient; `place` puts the gradient of its weight where the dense one has it.

    trains: whether it has a backward pass. checked: whether it has the case's weights, so that results must agree.
    """

    module: nn.Module
    x: Tensor
    dy: Tensor
    place: Callable[[Tensor], Tensor] = lambda weight: weight
    trains: bool = True
    checked: bool = True

    def step(self) -> tuple[Tensor, ...]:
        """One training step of the layer alone: output, and the gradients of input, weight (and bias)."""
        return self.parts()["step"]()

    def parts(self) -> Parts:
        """The parts of a step; a frozen step has an input that needs a gradient, a frozen prefix has not."""
        module, x, dy, weights = self.module, self.x, self.dy, list(self.module.parameters())
        wanted = x.detach().requires_grad_()

        def train(on: bool) -> None:
            for weight in weights:
                weight.requires_grad_(on)

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (module(x),)

        def backward(given: Tensor, trained: bool) -> Callable[[], tuple[Tensor, ...]]:
            outputs: list[Tensor] = []

            def run() -> tuple[Tensor, ...]:
                train(trained)
                if not outputs:
                    outputs.append(module(given))
                return torch.autograd.grad(outputs[0], weights if trained else (given,), dy, retain_graph=True)

            return run

        def step() -> tuple[Tensor, ...]:
            train(True)
            y = module(wanted)
            return y, *torch.autograd.grad(y, (wanted, *weights), dy)

        def frozen() -> tuple[Tensor, ...]:
            train(False)
            return torch.autograd.grad(module(wanted), (wanted,), dy)

        def prefix() -> tuple[Tensor, ...]:
            train(False)
            return (module(x),)

        if not self.trains:
            return {"forward": forward}
        made = (forward, backward(wanted, False), backward(x, True), step, frozen, prefix)
        return dict(zip(PARTS, made, strict=True))


def names(case: Case, device: str, compiled: bool = True) -> list[str]:
    """The variants of a case: dense ones in both memory formats, ours, then the peers that have such a layer."""
    dense = ["dense"] if case.layer.kind == "linear" else ["dense", "dense channels_last"]
    plain, linear = case.pattern == "unstructured" and not case.clustered, case.layer.kind == "linear"
    if device == "cuda":
        if case.pattern == "2:4":
            return [*dense, "2:4", "masked", "torch 2:4"]
        peers = ["torch bsr"] if case.pattern.startswith("block") and linear else []
        if plain:  # torch has cuSPARSE's products, of which the sampled one knows no 16 bits
            exact = linear and case.dtype in ("float32", "tf32")
            return [*dense, "cuda", "masked", *(["torch csr"] if exact else [])]
        ours = OURS[device] if triton.available() else ("cuda", "masked")
        # 2:4 knows one density and, here, no TF32; the block of a case does not matter to it.
        some = case.pattern == "block:64x64" and case.dtype == "bfloat16"
        peers += ["torch 2:4"] if some and case.sparsity == 0.9 else []
        cuda = ["cuda"] if some and case.sparsity in (0.8, 0.9) and "cuda" not in ours else []  # only to compare
        return [*dense, *ours, *cuda, *(peers if linear else [])]
    peers = ["torch csr", "sparseprop"] if linear else ["sparseprop"]
    return [*dense, *(f"{name} compiled" for name in dense if compiled), *OURS[device], *(peers if plain else ())]


def sparse_layer(case: Case, device: str = "cpu") -> spfde.nn.SparseLayer:
    """The layer with the weights that the case stores.

    Raises:
        Absent: this spfde refuses the pattern for this layer.
    """
    dense = case.layer.dense(case.dtype, device)
    mask = case.mask(dense.weight)
    try:
        if mask is not None:
            return spfde.nn.SparseLinear.from_dense(dense, mask)
        return spfde.sparsify(dense, case.sparsity, pattern=case.pattern)
    except ValueError as error:
        raise Absent(f"spfde: {error}") from error


@lru_cache(maxsize=8)
def dense_variant(layer: Layer, name: str, dtype: str = "float32", device: str = "cpu") -> Variant:
    """A dense baseline of `names`; one for all cases of a layer, as a zero weight costs what another does."""
    module, x = layer.dense(dtype, device), layer.input(dtype, device)
    dy = _output_gradient(module, x)
    if "channels_last" in name:
        last = torch.channels_last
        module, x, dy = (
            module.to(memory_format=last),
            x.contiguous(memory_format=last),
            dy.contiguous(memory_format=last),
        )
    if "compiled" in name:
        module = torch.compile(module, fullgraph=True, dynamic=False)
    return Variant(module, x, dy)


def sparse_variant(case: Case, name: str, sparse: spfde.nn.SparseLayer, device: str = "cpu") -> Variant:
    """A sparse variant of `names`, with the weights of `sparse`.

    Raises:
        Absent: a peer is not installed or has no such layer.
    """
    x = case.layer.input(case.dtype, device)
    if device == "cuda" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    dy = _output_gradient(case.layer.dense(case.dtype, device), x)
    if name in KERNELS:
        module = deepcopy(sparse)
        module.kernel = KERNELS[name]
        return Variant(module, x, dy, lambda values: _with_values(sparse, values))
    import peers

    return peers.variant(name, case, _masked(case, sparse, device), x, dy)


def variant(case: Case, name: str, sparse: spfde.nn.SparseLayer | None, device: str = "cpu") -> Variant:
    """Any variant of `names`."""
    if name.startswith("dense"):
        return dense_variant(case.layer, name, case.dtype, device)
    if sparse is None:
        raise Absent("spfde refuses the pattern")
    return sparse_variant(case, name, sparse, device)


def expected(
    case: Case, sparse: spfde.nn.SparseLayer | None = None, device: str = "cpu"
) -> dict[str, tuple[Tensor, ...]]:
    """What every variant has to give, by part: of the dense layer, with the weights of `sparse` if given."""
    module = case.layer.dense(case.dtype, device) if sparse is None else _masked(case, sparse, device)
    x = case.layer.input(case.dtype, device)
    y, dx, dweight, *dbias = Variant(module, x, _output_gradient(module, x)).step()
    dweights = (dweight if sparse is None else dweight * sparse.mask(), *dbias)
    y = y.detach()
    wanted = ((y,), (dx,), dweights, (y, dx, *dweights), (dx,), (y,))
    return dict(zip(PARTS, wanted, strict=True))


def check(made: Variant, part: str, wanted: Mapping[str, tuple[Tensor, ...]], dtype: str = "float32") -> None:
    """Runs a part of a variant and compares it with the `expected` one.

    Raises:
        Absent: the kernel refuses to run.
        ValueError: a result differs, so that its time would mean nothing.
    """
    try:
        results = list(made.parts()[part]())
    except ValueError as error:
        raise Absent(str(error)) from error
    if not made.checked:
        if not bool(results[0].isfinite().all()):
            raise ValueError("expected a finite result, got others")
        return
    at = {"weight gradient": 0, "step": 2}.get(part)
    if at is not None:
        results[at] = made.place(results[at])
    for got, want in zip(results, wanted[part], strict=True):
        error = float((got.detach().float() - want.float()).norm() / want.float().norm().clamp(min=1e-30))
        if not error <= TOLERANCE[dtype]:
            raise ValueError(f"wrong {part}: relative error {error:.1e} against the dense layer")


def timed_parts(device: str) -> tuple[str, ...]:
    """What is timed there: on a CPU the whole step alone."""
    return PARTS if device == "cuda" else ("step",)


def _masked(case: Case, sparse: spfde.nn.SparseLayer, device: str) -> nn.Module:
    dense = case.layer.dense(case.dtype, device)
    dense.weight = nn.Parameter(sparse.dense_weight())
    return dense


def _output_gradient(dense: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        shape = dense(x[:1]).shape[1:]
    dy = torch.randn(len(x), *shape, generator=torch.Generator().manual_seed(2)).to(x.device, x.dtype)
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return dy.contiguous(memory_format=torch.channels_last) if last else dy


def _with_values(sparse: spfde.nn.SparseLayer, values: Tensor) -> Tensor:
    copy = deepcopy(sparse)
    copy.values.data = values
    return copy.dense_weight()
