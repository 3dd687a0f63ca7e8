"""The ways to compute a layer on a GPU, and the parts of a training step that are timed apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu.cases import FILLED, OURS, PARTS, Case
from torch import Tensor, nn

import spfde
from spfde.sparse.pattern import Pattern

KERNELS = dict(zip(OURS, ("triton", "dense"), strict=True))
TOLERANCE = {"bfloat16": 2e-2, "tf32": 5e-3}  # of the dense layer's norm: a wrong index is far above it

Parts = Mapping[str, Callable[[], object]]


class Absent(Exception):
    """A peer cannot be timed here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """A dense layer that is zero outside its mask, an input, an output gradient, and what the layer makes of them."""

    case: Case
    dense: nn.Module
    mask: Tensor
    x: Tensor
    dy: Tensor
    y: Tensor
    dx: Tensor
    dweight: Tensor


def problem(case: Case, device: str = "cuda") -> Problem:
    """The same random data whenever a case is run. Sets what torch's float32 products may round to."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    with torch.device(device):
        if case.kind == "conv2d":
            dense: nn.Module = nn.Conv2d(case.inputs, case.outputs, 3, case.stride, 1, bias=False, dtype=dtype)
            x = torch.randn(case.batch, case.inputs, case.pixels, case.pixels, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            dense = nn.Linear(case.inputs, case.outputs, bias=False, dtype=dtype)
            x = torch.randn(case.batch, case.inputs, dtype=dtype)
        mask = _mask(case, tuple(dense.weight.shape))
    dense.weight.data.mul_(mask)
    wanted = x.clone().requires_grad_()
    y = dense(wanted)
    dy = torch.randn_like(y)
    return Problem(case, dense, mask, x, dy, y.detach(), *torch.autograd.grad(y, (wanted, dense.weight), dy))


def _mask(case: Case, shape: tuple[int, ...]) -> Tensor:
    """What is stored: whole blocks, or single weights in tiles of that size."""
    grid = Pattern.parse(f"block:{case.block}x{case.block}").grid(shape)
    kept = torch.randperm(grid.size)[: max(1, round(case.density * grid.size))].sort().values
    mask = torch.zeros(grid.weights + 1, dtype=torch.bool)
    mask[grid.places(kept).view(-1)] = True
    mask = mask[:-1].view(shape)
    return mask & (torch.rand(shape) < FILLED) if case.kind == "clustered" else mask


def calls(given: Problem, way: str) -> Parts:
    """What to time of a way, by part. Peers without a backward pass have a forward one alone.

    Raises:
        Absent: torch has no such peer here, or it is wrong.
        ValueError: a result of another way is wrong.
    """
    if not way.startswith("torch"):
        return _parts(given, way)
    try:
        return _forward_alone(given, way)
    except (RuntimeError, ValueError) as error:  # what torch raises for what it has no kernel for
        raise Absent(str(error).strip().splitlines()[0]) from error


def chosen(given: Problem) -> tuple[str, str]:
    """The way that kernel = "auto" takes, and why."""
    layer = _sparse(given, "auto")
    with torch.no_grad():
        layer(given.x)
    ways = {kernel: way for way, kernel in KERNELS.items()}
    return ways.get(layer.choice.kernel, layer.choice.kernel), layer.choice.reason


def _sparse(given: Problem, kernel: str) -> spfde.nn.SparseLinear | spfde.nn.SparseConv2d:
    kind = spfde.nn.SparseConv2d if given.case.kind == "conv2d" else spfde.nn.SparseLinear
    layer = kind.from_dense(given.dense, given.mask, given.case.pattern)
    layer.kernel = kernel
    return layer


def _parts(given: Problem, way: str) -> Parts:
    x, dy, dweight = given.x, given.dy, given.dweight
    if way in KERNELS:
        module: nn.Module = _sparse(given, KERNELS[way])
        dweight = module.grid.cut(dweight)[module.positions()]
    else:
        module = deepcopy(given.dense)  # a copy: memory formats stay apart
    if way == "cudnn contiguous":
        x, dy = x.contiguous(), dy.contiguous()
    if way == "cudnn channels_last":
        module = module.to(memory_format=torch.channels_last)
    [weight] = module.parameters()
    parts = dict(zip(PARTS, _timed(module, weight, x, dy), strict=True))
    y, dx = (given.y,), (given.dx,)
    for part, want in zip(PARTS, (y, dx, (dweight,), (*dx, dweight), dx, y), strict=True):
        _check(given, part, parts[part](), want)
    return parts


def _timed(module: nn.Module, weight: Tensor, x: Tensor, dy: Tensor) -> list[Callable[[], tuple[Tensor, ...]]]:
    """The functions for PARTS; a frozen step has an input that needs a gradient, a frozen prefix has not."""
    wanted = x.detach().requires_grad_()

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (module(x),)

    def backward(given: Tensor, needed: Tensor, trained: bool) -> Callable[[], tuple[Tensor, ...]]:
        weight.requires_grad_(trained)
        y = module(given)

        def run() -> tuple[Tensor, ...]:
            weight.requires_grad_(trained)
            return torch.autograd.grad(y, needed, dy, retain_graph=True)

        return run

    def step(trained: bool) -> Callable[[], tuple[Tensor, ...]]:
        def run() -> tuple[Tensor, ...]:
            weight.requires_grad_(trained)
            return torch.autograd.grad(module(wanted), (wanted, weight) if trained else (wanted,), dy)

        return run

    def prefix() -> tuple[Tensor, ...]:
        weight.requires_grad_(False)
        return (module(x),)

    return [forward, backward(wanted, wanted, False), backward(x, weight, True), step(True), step(False), prefix]


def _forward_alone(given: Problem, way: str) -> Parts:
    weight, x = given.dense.weight.detach(), given.x
    if way == "torch bsr":
        weight = weight.to_sparse_bsr((given.case.block, given.case.block))
    else:
        weight = torch.sparse.to_sparse_semi_structured(_two_of_four(weight))

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (F.linear(x, weight),)

    [y] = forward()
    if way == "torch bsr":
        _check(given, "forward", (y,), (given.y,))
    elif not bool(y.isfinite().all()):  # of other weights: no more can be said, but it has run
        raise ValueError("expected a finite result, got others")
    return {"forward": forward}


def _two_of_four(weight: Tensor) -> Tensor:
    """A weight of that shape that keeps two of every four inputs."""
    kept = torch.tensor([1, 0, 1, 0], dtype=torch.bool, device=weight.device).repeat(weight.shape[1] // 4)
    return torch.randn_like(weight) * kept


def _check(given: Problem, part: str, results: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for got, want in zip(results, wanted, strict=True):
        error = float((got.float() - want.float()).norm() / want.float().norm().clamp(min=1e-30))
        if not error <= TOLERANCE[given.case.dtype]:
            raise ValueError(f"wrong {part}: relative error {error:.1e} against the dense layer")
