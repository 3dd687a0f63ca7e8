"""On a GPU: what the interpreter cannot tell. Real bfloat16 and TF32, tensor cores, races, determinism.

Nothing but torch, pytest and spfde is needed, so that a bare machine can run it. `test_on_fake_cuda.py` runs it on a
CPU, small, in Triton's interpreter.
"""

from __future__ import annotations

import os
from itertools import product

import pytest
import torch
from torch import nn

import spfde
from spfde.sparse.pattern import Pattern

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the result's norm
SMALL = os.environ.get("TRITON_INTERPRET") == "1"  # no GPU at work: every launch takes its time
WIDE, SIDE, TOKENS = (64, 5, 40) if SMALL else (128, 14, 300)
LAYERS = {
    "linear": (lambda: nn.Linear(2 * WIDE, 3 * WIDE), (TOKENS, 2 * WIDE)),
    "odd linear": (lambda: nn.Linear(250, 390), (77, 250)),
    "3x3": (lambda: nn.Conv2d(WIDE, 2 * WIDE, 3, padding=1), (5, WIDE, SIDE, SIDE)),
    "3x3/2": (lambda: nn.Conv2d(WIDE, WIDE, 3, 2, padding=1), (3, WIDE, SIDE + 1, SIDE - 1)),
    "odd 3x3, dilated": (lambda: nn.Conv2d(WIDE + 2, 70, 3, dilation=2), (2, WIDE + 2, SIDE + 1, SIDE)),
    "1x1": (lambda: nn.Conv2d(WIDE, 2 * WIDE, 1), (4, WIDE, 7, 7)),
}


@pytest.fixture
def precision(request):
    """Sets TF32 and returns the type to compute in."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.param == "tf32"
    yield request.param, getattr(torch, request.param, torch.float32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def layers(name: str, block: str, density: float = 0.3) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A dense layer that is zero outside its blocks, the same one sparse, both on the GPU, and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    dense = make()
    grid = Pattern.parse(f"block:{block}").grid(tuple(dense.weight.shape))
    mask = torch.zeros(grid.weights + 1, dtype=torch.bool)
    kept = (torch.rand(grid.size) < density).nonzero().view(-1)
    mask[grid.places(kept).view(-1)] = True
    mask = mask[:-1].view(dense.weight.shape)
    dense.weight.data.mul_(mask)
    layer = spfde.nn.SparseConv2d if dense.weight.dim() == 4 else spfde.nn.SparseLinear
    sparse = layer.from_dense(dense, mask, f"block:{block}")
    sparse.bias = nn.Parameter(dense.bias.detach().clone())
    x = torch.randn(shape)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return dense, sparse.cuda(), x


def step(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, then the gradients of input, weights and bias."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), dy)]


# Every combination would be compiled for: all precisions of one block, one precision of the others.
COMBINATIONS = [
    *product(LAYERS, ["64x64"], TOLERANCE),
    *product(list(LAYERS)[2:], ["16x16", "128x128", "64x16"], ["bfloat16"]),
]


@pytest.mark.parametrize(("name", "block", "precision"), COMBINATIONS, indirect=["precision"])
def test_a_step_against_float64(name, block, precision):
    called, dtype = precision
    dense, sparse, x = layers(name, block)
    sparse, x = sparse.to(dtype), x.to(dtype)
    sparse.kernel = "triton"
    dense.weight.data = sparse.dense_weight().double().cpu()
    dense.bias.data = sparse.bias.data.double().cpu()
    y, dx, dweight, dbias = step(dense, x.double())
    exact = [y, dx, sparse.grid.cut(dweight)[sparse.positions().cpu()], dbias]
    for got, want in zip(step(sparse, x.cuda()), exact, strict=True):
        assert float((got.double().cpu() - want).norm()) <= TOLERANCE[called] * float(want.norm())


@pytest.mark.parametrize("name", list(LAYERS))
def test_two_runs_give_the_same_bits(name):
    _, sparse, x = layers(name, "32x32")
    sparse.kernel = "triton"
    first, second = step(sparse, x.cuda()), step(sparse, x.cuda())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("block", ["8x8", "4x1"])
def test_blocks_without_a_kernel_run_dense(block):
    _, sparse, x = layers("3x3", block)
    step(sparse, x.cuda())
    assert sparse.choice.kernel == "dense" and "16, 32, 64 or 128" in sparse.choice.reason
