"""Additions behind sparse layers in Triton's interpreter: one kernel for both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels.triton.fused_models import close, exact, images, sparse
from torch import Tensor, nn

import spfde

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")


class Sum(nn.Module):
    """end(x + layer(h)), the layer and the end given by the test."""

    def __init__(self, layer, end=None):
        super().__init__()
        self.layer, self.end = layer, end

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        y = x + self.layer(h)
        return y if self.end is None else self.end(y)


LAYERS = {
    "linear": (lambda: nn.Linear(32, 16), (6, 32), (6, 16)),
    "tokens": (lambda: nn.Linear(32, 16, False), (2, 3, 32), (2, 3, 16)),
    "conv": (lambda: nn.Conv2d(16, 32, 3, 2, 1), (2, 16, 5, 4), (2, 32, 3, 2)),
    "1x1": (lambda: nn.Conv2d(16, 32, 1, bias=False), (2, 16, 3, 3), (2, 32, 3, 3)),
}
ENDS = {
    "none": None, "relu": nn.ReLU(), "relu6": F.relu6, "gelu": nn.GELU(), "relu in place": lambda y: F.relu(y, True),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(("make", "shape", "out"), LAYERS.values(), ids=LAYERS)
def test_one_kernel_adds(launched, whole, make, shape, out, end):
    model = sparse(Sum(make(), end))
    h, x = images(*shape), images(*out, seed=1)
    close(model(h, x), exact(model, h, x))
    assert len(launched) == len(whole) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(whole, dtype):
    model = sparse(Sum(nn.Linear(32, 16))).to(dtype)
    h, x = images(6, 32, dtype=dtype), images(6, 16, dtype=dtype, seed=1)
    y = model(h, x)
    assert whole == ["linear"] and y.dtype == dtype
    close(y, exact(model, h, x), 2e-2)


def test_a_residual_with_gaps_is_read_as_it_lies(whole):
    model = sparse(Sum(nn.Linear(32, 16)))
    h, x = images(6, 32), images(16, 6, seed=1).t()
    close(model(h, x), exact(model, h, x))
    assert whole == ["linear"]


def test_a_sum_lies_in_memory_as_its_first_operand(whole):
    model = sparse(Sum(nn.Conv2d(16, 32, 1)))
    h, x = images(2, 16, 3, 3), images(2, 32, 3, 3, seed=1)
    for r, kinds in ((x, ["conv"]), (x.contiguous(), [])):
        y = model(h, r)
        close(y, exact(model, h, r))
        assert y.stride() == r.stride() and whole == kinds
        whole.clear()


def test_what_is_added_to_in_place_keeps_its_precision_behind_a_norm(whole):
    model = sparse(Inverted(in_place=True))
    plain = spfde.unfuse(copy.deepcopy(model))
    x = images(2, 16, 4, 4)
    close(model(x), exact(model, x))
    assert whole == ["conv"]
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = model(x), plain(x)
    assert whole == ["conv"] and y.dtype == expected.dtype == torch.bfloat16
    close(y, expected.double(), 1e-2)


class Mine(Tensor):
    """A subclass."""


OTHERWISE = {
    "a number": lambda m, h, x: m(h, 0.5),
    "to broadcast": lambda m, h, x: m(h, x[:1]),
    "a larger one": lambda m, h, x: m(h, x.expand(2, 6, 16)),
    "another precision": lambda m, h, x: m(h, x.double()),
    "a subclass": lambda m, h, x: m(h, x.as_subclass(Mine)),
    "a hook on the layer": lambda m, h, x: m.layer.register_forward_hook(lambda *_: None) and m(h, x),
    "another kernel": lambda m, h, x: setattr(m.layer, "kernel", "dense") or m(h, x),
}


@pytest.mark.parametrize("run", OTHERWISE.values(), ids=OTHERWISE)
def test_otherwise_the_parts_run_one_by_one(whole, run):
    model = sparse(Sum(nn.Linear(32, 16)))
    plain = spfde.unfuse(copy.deepcopy(model))
    got, expected = (run(m, images(6, 32), images(6, 16, seed=1)) for m in (model, plain))
    assert whole == [] and type(got) is type(expected) and got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(("make", "shape", "out"), LAYERS.values(), ids=LAYERS)
def test_one_kernel_adds_in_training(launched, make, shape, out, end):
    model = spfde.freezing.unfreeze(sparse(Sum(make(), end)))
    plain = spfde.unfuse(copy.deepcopy(model))
    results = []
    for m in (model, plain):
        h, x = images(*shape).requires_grad_(), images(*out, seed=1).requires_grad_()
        launched.clear()
        y = m(h, x)
        assert len(launched) == 1
        assert m is plain or type(y.grad_fn).__name__ in ("_ProductBackward", "ViewBackward0")
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [h, x, *m.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_a_float32_residual_under_autocast(trains):
    """The sum is float32, but where it is written to what the layer returned."""
    model = sparse(Sum(nn.Linear(32, 16)))
    inside = sparse(Inside(nn.Linear(32, 16)))
    h, x = images(6, 32), images(6, 16, seed=1).requires_grad_(trains)
    for m, dtype in ((model, torch.float32), (inside, torch.bfloat16)):
        plain = spfde.unfuse(copy.deepcopy(m))
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = m(h, x), plain(h, x)
        assert y.dtype == expected.dtype == dtype
        close(y.detach(), expected.detach().double(), 1e-2)


class Inside(nn.Module):
    """The sum in the memory of the layer's result."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        y = self.layer(h)
        y += x
        return y


def test_only_the_residual_wants_a_gradient():
    model = sparse(Sum(nn.Linear(32, 16)))
    h, x = images(6, 32), images(6, 16, seed=1).requires_grad_()
    dx = torch.autograd.grad(model(h, x).square().sum(), x)[0]
    close(dx, 2 * exact(model, h, x))


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16"])
def test_a_frozen_transformer_block_adds_in_the_last_kernel_of_each_branch(launched, whole, pattern):
    model = sparse(spfde.models.transformer.Block(32, 2), pattern=pattern)
    x = images(2, 5, 32)
    launched.clear()
    y = model(x)
    assert launched == ["spmm_kernel"] * 6  # q, k, v, proj with its addition, fc1 with GELU, fc2 with its addition
    assert whole == ["linear"] * 3
    close(y, exact(model, x))


class Inverted(nn.Module):
    """x + block(x), where the block ends with a norm, or the sum in the memory of what it returns."""

    def __init__(self, in_place=False):
        super().__init__()
        self.in_place = in_place
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).add_(x) if self.in_place else x + self.block(x)


def backward_nodes(y: Tensor) -> set[Any]:
    """What the graph of y is made of."""
    seen, rest = set(), [y.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            rest += [following for following, _ in node.next_functions]
    return seen


def test_a_trained_transformer_block_adds_in_the_last_kernel_of_each_branch():
    frozen = sparse(spfde.models.transformer.Block(32, 2))
    model = spfde.freezing.unfreeze(frozen)
    plain = spfde.unfuse(copy.deepcopy(model))
    grads, apart = [], []
    for m in (model, plain):
        x = images(2, 5, 32).requires_grad_()
        y = m(x)
        names = [node.name() for node in backward_nodes(y)]
        apart.append([names.count("AddBackward0"), names.count("GeluBackward0")])
        grads.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])])
    assert apart == [[0, 0], [2, 1]]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_a_norm_and_the_addition_of_another_module_are_one_kernel(launched, whole):
    model = sparse(Inverted())
    x = images(2, 16, 4, 4)
    launched.clear()
    close(model(x), exact(model, x))
    assert whole == ["conv"] and len(launched) == 1
    model.block.register_forward_hook(lambda *_: None)
    close(model(x), exact(model, x))
    assert whole == ["conv", "conv"]  # and torch's addition


def test_the_report_names_them():
    report = spfde.fuse.report(sparse(Inverted()))
    assert [(layer.name, layer.chain, layer.reason) for layer in report.layers] == [("block.0", "conv+norm+add", "")]
    report = spfde.fuse.report(sparse(Sum(nn.Linear(32, 16), nn.GELU())))
    assert [(layer.name, layer.chain, layer.reason) for layer in report.layers] == [("layer", "linear+add+gelu", "")]
