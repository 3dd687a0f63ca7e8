"""ReLU in the kernel of a layer that is trained, in Triton's interpreter: gradients against float64."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from kernels.triton.fused_models import close, images, sparse
from torch import Tensor, nn

import spfde
from spfde.fusing import epilogue

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")


class Plain(nn.Module):
    """A layer, then ReLU."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


TRAINED = {
    "linear": (lambda: nn.Linear(32, 40), (6, 32)), "linear of tokens": (lambda: nn.Linear(32, 40, False), (2, 3, 32)),
    "conv": (lambda: nn.Conv2d(16, 40, 3, 2, 1), (2, 16, 5, 4)), "1x1": (lambda: nn.Conv2d(16, 16, 1), (2, 16, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("pattern", ["block:16x16", "unstructured"])
@pytest.mark.parametrize(("make", "shape"), TRAINED.values(), ids=TRAINED)
def test_relu_in_training_with_its_gradient(monkeypatch, make, shape, pattern):
    if len(shape) == 4 and pattern == "unstructured":
        pattern = "block:32x16"
    model = spfde.freezing.unfreeze(sparse(Plain(make()), pattern=pattern))
    dense = spfde.densify(spfde.unfuse(copy.deepcopy(model))).double()
    x, wide = (images(*shape).to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
    monkeypatch.setitem(epilogue.FUNCTIONS, "relu", None)  # is not called
    y, expected = model(x), dense(wide)
    dy = images(*y.shape, seed=1)
    grads = torch.autograd.grad(y, [x, *model.parameters()], dy)
    exact_grads = torch.autograd.grad(expected, [wide, *dense.parameters()], dy.double())
    close(y.detach(), expected.detach())
    mask = model.layer.mask()
    for name, got, want in zip(["x", *dict(model.named_parameters())], grads, exact_grads, strict=True):
        if name == "layer.values":
            full = copy.deepcopy(model.layer)
            full.values.data.copy_(got)
            got, want = full.dense_weight(), want * mask
        close(got, want)


def test_relu_in_training_lets_pass_what_is_not_a_number_as_torch_does():
    model = spfde.freezing.unfreeze(sparse(Plain(nn.Linear(16, 16))))
    x = images(3, 16)
    x[1, 2] = float("nan")
    plain = spfde.unfuse(copy.deepcopy(model))
    results = [torch.autograd.grad(m(x).sum(), list(m.parameters())) for m in (model, plain)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_relu_in_training_keeps_its_output_and_has_second_derivatives():
    model = spfde.freezing.unfreeze(sparse(Plain(nn.Linear(16, 32))))
    x, kept = images(3, 16).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = model(x)
    assert y.data_ptr() in kept and len(kept) == 3
    seconds = []
    for m in (model, spfde.unfuse(copy.deepcopy(model))):
        (dx,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(dx.square().sum(), list(m.parameters())))
    for got, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("change", [
    lambda m: setattr(m.layer, "_grad_probe", lambda dy, x: None), lambda m: setattr(m.layer, "kernel", "dense"),
    lambda m: setattr(m.layer, "transform", nn.Identity()),
], ids=["probe", "kernel", "transform"])  # fmt: skip
def test_relu_in_training_runs_alone_where_something_asks_for_its_input(monkeypatch, change):
    model = spfde.freezing.unfreeze(sparse(Plain(nn.Linear(16, 32))))
    change(model)
    called = []
    monkeypatch.setitem(epilogue.FUNCTIONS, "relu", lambda z: called.append(1) or F.relu(z))
    model(images(3, 16))
    assert called == [1]


class Again(nn.Module):
    """A layer with ReLU that reads what a norm made."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.norm(x))))


class AgainLinear(nn.Module):
    """A layer with an addition and ReLU that reads what a GELU made."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.gelu(self.fc1(x))) + x)


AGAIN = {"norm": (Again, (2, 16, 4, 4), 1), "gelu": (AgainLinear, (6, 16), 2), "tokens": (AgainLinear, (2, 3, 16), 2)}


@pytest.mark.parametrize(("make", "shape", "layers"), AGAIN.values(), ids=AGAIN)
def test_a_layer_that_does_not_save_its_input_has_relu_in_its_kernel_too(monkeypatch, make, shape, layers):
    called, inputs, results = [], [], []
    for name in ("relu", "add"):
        monkeypatch.setitem(epilogue.FUNCTIONS, name, lambda *_: called.append(1))
    for kind in epilogue.LAYERS:

        def see(layer, x, epilogue, run=kind.call_with_epilogue):
            return inputs.append(storage(x)) or run(layer, x, epilogue)

        monkeypatch.setattr(kind, "call_with_epilogue", see)
    plain = spfde.freezing.unfreeze(sparse(make(), fused=False))
    for model in (spfde.fuse(copy.deepcopy(plain), recompute=True), spfde.fuse(copy.deepcopy(plain)), plain):
        inputs.clear()
        loss = model(images(*shape)).square().sum()
        gc.collect()
        kept = [at() is not None for at in inputs]
        results.append((kept, [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]))
    (again, got), (saved, other), (_, expected) = results
    assert called == [] and len(again) == len(saved) == layers
    assert not again[-1] and all(saved)
    for tensors in (got, other):
        for one, exact in zip(tensors, expected, strict=True):
            torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-4)


def storage(x: Tensor) -> weakref.ref[torch.UntypedStorage]:
    return weakref.ref(x.untyped_storage())
