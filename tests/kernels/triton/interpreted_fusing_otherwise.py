"""Fused layers in Triton's interpreter where one kernel will not do: what ran before, and its errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from kernels.triton.fused_models import MLP, Block, close, exact, images, sparse
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import spfde
from spfde.nn import FusedNormAct2d, SparseConv2d, SparseLayer, SparseLinear

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")


def with_(change):
    def run(model, x, residual):
        change(model)
        return model(x, residual)

    return run


def scaled(layer: SparseLayer) -> None:
    layer.transform = nn.Identity()


def patched(module: nn.Module) -> None:
    forward = type(module).forward
    module.forward = lambda *args: forward(module, *args)


def globally(model, x, residual):
    handle = register_module_forward_hook(lambda *_: None)
    try:
        return model(x, residual)
    finally:
        handle.remove()


OTHERWISE = {
    "x wants a gradient": lambda m, x, r: m(x.requires_grad_(), r),
    "the residual wants a gradient": lambda m, x, r: m(x, r.requires_grad_()),
    "values want a gradient": with_(lambda m: m.conv.values.requires_grad_()),
    "the norm's weight wants a gradient": with_(lambda m: m.norm.weight.requires_grad_()),
    "the norm trains": with_(lambda m: setattr(m.norm, "training", True)),
    "another kernel": with_(lambda m: setattr(m.conv, "kernel", "dense")),
    "a hook on the layer": with_(lambda m: m.conv.register_forward_hook(lambda *_: None)),
    "a hook on the norm": with_(lambda m: m.norm.register_forward_pre_hook(lambda *_: None)),
    "a hook on every module": globally,
    "a probe": with_(lambda m: setattr(m.conv, "_grad_probe", lambda dy, x: None)),
    "a transform": with_(lambda m: scaled(m.conv)),
    "the layer's forward replaced": with_(lambda m: patched(m.conv)),
    "the norm's forward replaced": with_(lambda m: patched(m.norm)),
    "a subclass": with_(lambda m: setattr(m.conv, "__class__", type("Mine", (SparseConv2d,), {}))),
    "the norm is another module": with_(lambda m: setattr(m.norm, "__class__", type("N", (FusedNormAct2d,), {}))),
    "a residual to broadcast": lambda m, x, r: m(x, r[:, :, :1, :1].contiguous()),
    "a residual that is a number": lambda m, x, r: m(x, 0.5),
    "a residual of another precision": lambda m, x, r: m(x, r.double()),
}


@pytest.mark.parametrize("run", OTHERWISE.values(), ids=OTHERWISE)
def test_otherwise_the_parts_run_one_by_one(whole, run):
    model = sparse(Block())
    plain = spfde.unfuse(copy.deepcopy(model))
    got, expected = (run(m, images(2, 16, 4, 4), images(2, 16, 4, 4, seed=1)) for m in (model, plain))
    assert whole == [] and got.requires_grad == expected.requires_grad
    torch.testing.assert_close(got, expected)


def test_a_norm_without_running_statistics(whole):
    model = sparse(Block(norm={"track_running_stats": False}))
    plain = spfde.unfuse(copy.deepcopy(model))
    x, residual = images(2, 16, 4, 4), images(2, 16, 4, 4, seed=1)
    torch.testing.assert_close(model(x, residual), plain(x, residual))
    assert whole == []


WRONG = {
    "channels": (lambda m: m(images(2, 8, 4, 4), images(2, 16, 4, 4)), "expected x of shape"),
    "no batch": (lambda m: m(images(16, 4, 4), images(16, 4, 4)), "expected 4D input"),
    "too small": (lambda m: m(images(2, 16, 0, 4), images(2, 16, 0, 4)), "expected an image at least as large"),
    "float64": (lambda m: m.double()(images(2, 16, 4, 4).double(), None), "kernel 'triton'.*float64"),
    "integers": (lambda m: m(images(2, 16, 4, 4).int(), None), "expected x to be floating point"),
    "a norm of another size": (lambda m: setattr(m, "norm", other()) or m(*[images(2, 16, 4, 4)] * 2), "running_mean"),
}


def other() -> nn.Module:
    return FusedNormAct2d(8).requires_grad_(False).eval()


@pytest.mark.parametrize(("run", "message"), WRONG.values(), ids=WRONG)
def test_errors_are_those_of_the_parts(whole, run, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(sparse(Block(kernel=3, dilation=1)))
    assert whole == []


def test_groups_are_refused_as_ever():
    model = sparse(Block(groups=1))
    model.conv.plan.window = model.conv.window._replace(groups=2)
    with pytest.raises(ValueError, match="no sparse kernel for groups"):
        model(images(2, 32, 4, 4), images(2, 16, 4, 4))


def test_one_compilation_holds_a_frozen_model(whole):
    torch._dynamo.reset()
    for model, inputs in ((sparse(Block()), [images(2, 16, 4, 4)] * 2), (sparse(MLP(F.gelu)), [images(4, 32)])):
        y = model(*inputs)
        whole.clear()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*inputs), y, rtol=1e-4, atol=1e-5)
        assert whole == []


def test_linear_layers_are_left_to_a_norm_of_images(whole):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(16, 16), nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.norm(self.fc(x)))

    model = sparse(Odd())
    x = images(2, 3, 4, 16)
    close(model(x), exact(model, x))
    assert whole == [] and spfde.fuse.report(model).layers == ()


def test_linear_layers_are_found_by_their_type():
    report = spfde.fuse.report(sparse(MLP(nn.GELU())))
    assert [(layer.name, layer.chain) for layer in report.layers] == [("fc1", "linear+gelu")]
    assert isinstance(sparse(MLP(nn.GELU())).fc1, SparseLinear)


def test_a_bias_with_gaps_is_read_as_it_lies():
    layer = spfde.sparsify(nn.Linear(32, 32), 0.5, pattern="block:16x16")
    layer.kernel, layer.bias = "triton", nn.Parameter(torch.randn(64)[::2])
    x = torch.randn(5, 32)
    with torch.no_grad():
        y = spfde.fuse(nn.Sequential(layer, nn.ReLU()))(x)
        torch.testing.assert_close(y, layer(x).relu())
