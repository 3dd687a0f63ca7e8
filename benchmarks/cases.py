"""Layers to time, the speed-ups they are held to, and every way there is to compute them.

All cases of a layer do the same work on the same random data: forward, input gradient, weight gradient at the stored
positions, bias gradient. Each has the memory layout that it likes best, so that no copy is charged to it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import spfde

SPARSITIES = (0.6, 0.8, 0.9, 0.95, 0.98)
PATTERNS = ("unstructured", "block:4x1")
KERNELS = {"native": "native", "masked": "dense", "auto": "auto"}
TOLERANCE = 1e-3  # float32 against float32: a wrong index or a missing term is far above it


@dataclass(frozen=True)
class Layer:
    """A dense layer and its input: `channels` is (in, out), images are square, a linear layer's batch is its rows."""

    kind: str
    batch: int
    channels: tuple[int, int]
    size: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True

    def __str__(self) -> str:
        width = "x".join(map(str, self.channels))
        if self.kind == "linear":
            return f"linear {width} b{self.batch}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.group}{stride} {width}{groups} {self.size}px b{self.batch}"

    @property
    def group(self) -> str:
        """What layers are compared with: "linear", "conv 3x3", ..."""
        return self.kind if self.kind == "linear" else f"conv {self.kernel}x{self.kernel}"

    @property
    def lanes(self) -> int:
        """Batch x output positions."""
        side = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return self.batch * (1 if self.kind == "linear" else side * side)

    def dense(self) -> nn.Module:
        """The dense layer, always with the same weights."""
        torch.manual_seed(0)
        if self.kind == "linear":
            return nn.Linear(*self.channels, bias=self.bias)
        return nn.Conv2d(
            *self.channels, self.kernel, self.stride, self.padding, groups=self.groups, bias=self.bias
        )  # fmt: skip

    def input(self) -> Tensor:
        """Random input, always the same."""
        image = (self.size, self.size) if self.kind == "conv" else ()
        return torch.randn(self.batch, self.channels[0], *image, generator=torch.Generator().manual_seed(1))


def conv(batch: int, channels: tuple[int, int], size: int, kernel: int) -> Layer:
    """A convolution that keeps the image's size."""
    return Layer("conv", batch, channels, size, kernel, padding=kernel // 2)


LINEAR = [Layer("linear", batch, shape) for shape in ((1024, 1024), (2048, 2048), (4096, 1024)) for batch in (128, 512)]
CONV = [
    *(conv(64, (n, n), size, 3) for n, size in ((16, 32), (32, 16), (64, 8), (128, 16), (256, 8), (512, 4))),
    conv(64, (256, 256), 14, 1),
    conv(64, (64, 256), 32, 1),
]
LAYERS = [*LINEAR, *CONV]

# Speed-up over the best dense layer, forward + backward, at each of SPARSITIES.
TARGETS = {
    ("unstructured", "linear"): (1.0, 2.0, 4.0, 7.0, 12.0),
    ("unstructured", "conv"): (1.0, 2.0, 3.5, 6.0, 9.0),
    ("block:4x1", "linear"): (1.3, 2.8, 5.5, 9.0, 14.0),
    ("block:4x1", "conv"): (1.3, 2.8, 5.5, 9.0, 14.0),
}
PEER_TARGET = 3.0  # times faster than SparseProp
PEER_SPARSITY = 0.9


def target(pattern: str, kind: str, sparsity: float) -> float | None:
    """The speed-up aimed at, or None where there is no aim."""
    aims = TARGETS.get((pattern, kind))
    return None if aims is None or sparsity not in SPARSITIES else aims[SPARSITIES.index(sparsity)]


class Absent(Exception):
    """This way of computing the layer cannot be timed here; the message says why."""


@dataclass(frozen=True)
class Case:
    """A way to compute a layer: its module, input, output gradient, and `dense`, which places stored weights."""

    module: nn.Module
    x: Tensor
    dy: Tensor
    dense: Callable[[Tensor], Tensor]

    def step(self) -> tuple[Tensor, ...]:
        """One training step of the layer alone; returns the output and the gradients of input, weight (and bias)."""
        x = self.x.detach().requires_grad_()
        y = self.module(x)
        return y, *torch.autograd.grad(y, [x, *self.module.parameters()], self.dy)


def dense_names(layer: Layer, compiled: bool = True) -> list[str]:
    """The dense baselines of a layer: memory formats, eager and compiled."""
    eager = ["dense", "dense channels_last"] if layer.kind == "conv" else ["dense"]
    return eager + [f"{name} compiled" for name in eager if compiled]


def sparse_names(layer: Layer, pattern: str) -> list[str]:
    """The sparse ways of a layer: ours, then the peers that have such a layer; they know no patterns."""
    peers = ["torch csr", "sparseprop"] if layer.kind == "linear" else ["sparseprop"]
    return [*KERNELS, *(peers if pattern == "unstructured" else ())]


def dense_case(layer: Layer, name: str) -> Case:
    """A dense baseline of `dense_names`."""
    module, x = layer.dense(), layer.input()
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
    return Case(module, x, dy, lambda weight: weight)


def sparse_case(layer: Layer, name: str, sparse: spfde.nn.SparseLayer) -> Case:
    """A sparse way of `sparse_names`, with the weights of `sparse`.

    Raises:
        Absent: the peer is not installed or has no such layer.
    """
    x = layer.input()
    dy = _output_gradient(layer.dense(), x)
    if name in KERNELS:
        module = deepcopy(sparse)
        module.kernel = KERNELS[name]
        return Case(module, x, dy, lambda values: _with_values(sparse, values))
    import peers

    return peers.case(name, _masked(layer, sparse), x, dy)


def sparsified(layer: Layer, sparsity: float, pattern: str = "unstructured") -> spfde.nn.SparseLayer:
    """The layer with the weights that spfde.sparsify keeps.

    Raises:
        Absent: this spfde refuses the pattern for this layer.
    """
    try:
        return spfde.sparsify(layer.dense(), sparsity, pattern=pattern)
    except ValueError as error:
        raise Absent(f"spfde: {error}") from error


def expected(layer: Layer, sparse: spfde.nn.SparseLayer | None = None) -> tuple[Tensor, ...]:
    """One step of the dense layer, with the weights of `sparse` if given: what every way has to give."""
    dense, x = layer.dense() if sparse is None else _masked(layer, sparse), layer.input()
    y, dx, dweight, *dbias = Case(dense, x, _output_gradient(dense, x), lambda weight: weight).step()
    return y.detach(), dx, dweight if sparse is None else dweight * sparse.mask(), *dbias


def check(case: Case, wanted: tuple[Tensor, ...]) -> None:
    """Runs one step of `case` and compares it with the `expected` one.

    Raises:
        Absent: an output or a gradient differs, so that its time would mean nothing, or the kernel refuses to run.
    """
    try:
        y, dx, dvalues, *dbias = case.step()
    except ValueError as error:
        raise Absent(str(error)) from error
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    results = (y.detach(), dx, case.dense(dvalues), *dbias)
    for name, got, want in zip(names[: len(wanted)], results, wanted, strict=True):
        error = float((got - want).norm() / want.norm().clamp(min=1e-30))
        if not error <= TOLERANCE:
            raise Absent(f"wrong {name}: relative error {error:.1e} against the dense layer")


def _masked(layer: Layer, sparse: spfde.nn.SparseLayer) -> nn.Module:
    dense = layer.dense()
    dense.weight = nn.Parameter(sparse.dense_weight())
    return dense


def _output_gradient(dense: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        shape = dense(x[:1]).shape[1:]
    return torch.randn(len(x), *shape, generator=torch.Generator().manual_seed(2))


def _with_values(sparse: spfde.nn.SparseLayer, values: Tensor) -> Tensor:
    copy = deepcopy(sparse)
    copy.values.data = values
    return copy.dense_weight()
