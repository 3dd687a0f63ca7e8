"""The ways to compute a layer on a GPU, and the parts of a training step that are timed apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu.cases import PARTS, Case
from torch import Tensor, nn

import spfde
from spfde.structure import Pattern

KERNEL = "triton"
TOLERANCE = {"bfloat16": 2e-2, "tf32": 5e-3}  # of the dense layer's norm: a wrong index is far above it


class Absent(Exception):
    """This way cannot be timed here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """A dense layer that is zero outside its stored blocks, its mask, an input and an output gradient."""

    case: Case
    dense: nn.Module
    mask: Tensor
    x: Tensor
    dy: Tensor


def problem(case: Case, device: str = "cuda") -> Problem:
    """The same random data whenever a case is run. Sets what torch's float32 products may round to."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    if case.kind == "linear":
        dense: nn.Module = nn.Linear(case.inputs, case.outputs, bias=False)
        x = torch.randn(case.batch, case.inputs)
    else:
        dense = nn.Conv2d(case.inputs, case.outputs, 3, case.stride, 1, bias=False)
        x = torch.randn(case.batch, case.inputs, case.pixels, case.pixels).contiguous(memory_format=torch.channels_last)
    grid = Pattern.parse(f"block:{case.block}x{case.block}").grid(tuple(dense.weight.shape))
    kept = torch.randperm(grid.size)[: max(1, round(case.density * grid.size))].sort().values
    mask = torch.zeros(grid.weights + 1, dtype=torch.bool)
    mask[grid.places(kept).view(-1)] = True
    mask = mask[:-1].view(dense.weight.shape).to(device)
    dense = dense.to(device, dtype)
    dense.weight.data.mul_(mask)
    x = x.to(device, dtype)
    with torch.no_grad():
        dy = torch.randn_like(dense(x))
    return Problem(case, dense, mask, x, dy)


def calls(given: Problem, way: str) -> dict[str, Callable[[], object]]:
    """What to time of a way, by part. Peers without a backward pass have a forward one alone.

    Raises:
        Absent: the way does not exist here, or its output is wrong.
    """
    try:
        return _forward_alone(given, way) if way.startswith("torch") else _parts(given, way)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise Absent(str(error).strip().splitlines()[0]) from error


def _parts(given: Problem, way: str) -> dict[str, Callable[[], object]]:
    module, x, dy = deepcopy(given.dense), given.x, given.dy  # a copy: memory formats stay apart
    if way == "spfde":
        layer = spfde.nn.SparseLinear if given.case.kind == "linear" else spfde.nn.SparseConv2d
        module = layer.from_dense(given.dense, given.mask, f"block:{given.case.block}x{given.case.block}")
        module.kernel = KERNEL
    if way == "cudnn contiguous":
        x, dy = x.contiguous(), dy.contiguous()
    if way == "cudnn channels_last":
        module = module.to(memory_format=torch.channels_last)
    [weight] = module.parameters()
    parts = (_forward(module, x), *_gradients(module, weight, x, dy))
    named = dict(zip(PARTS, parts, strict=True))
    _check(given, named["forward"]())
    return named


def _forward(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)

    return forward


def _gradients(module: nn.Module, weight: Tensor, x: Tensor, dy: Tensor) -> list[Callable[[], object]]:
    """Input gradient, weight gradient, a whole step, and the step of a frozen layer whose input needs a gradient."""
    wanted = x.detach().requires_grad_()

    def backward(given: Tensor, needed: Tensor, trained: bool) -> Callable[[], object]:
        weight.requires_grad_(trained)
        y = module(given)
        return lambda: torch.autograd.grad(y, needed, dy, retain_graph=True)

    def step(trained: bool) -> Callable[[], object]:
        def run() -> object:
            weight.requires_grad_(trained)
            return torch.autograd.grad(module(wanted), (wanted, weight) if trained else wanted, dy)

        return run

    return [backward(wanted, wanted, False), backward(x, weight, True), step(True), step(False)]


def _forward_alone(given: Problem, way: str) -> dict[str, Callable[[], object]]:
    weight, x = given.dense.weight.detach(), given.x
    if way == "torch bsr":
        weight = weight.to_sparse_bsr((given.case.block, given.case.block))
    else:
        weight = torch.sparse.to_sparse_semi_structured(_two_of_four(weight))
    forward = _forward(lambda x: F.linear(x, weight), x)
    if way == "torch bsr":
        _check(given, forward())
    else:
        forward()
    return {"forward": forward}


def _two_of_four(weight: Tensor) -> Tensor:
    """A weight of that shape that keeps two of every four inputs."""
    kept = torch.tensor([1, 0, 1, 0], dtype=torch.bool, device=weight.device).repeat(weight.shape[1] // 4)
    return torch.randn_like(weight) * kept


def _check(given: Problem, y: Tensor) -> None:
    with torch.no_grad():
        exact = given.dense(given.x).float()
    error = float((y.float() - exact).norm() / exact.norm().clamp(min=1e-30))
    if not error <= TOLERANCE[given.case.dtype]:
        raise ValueError(f"wrong output: relative error {error:.1e} against the dense layer")
