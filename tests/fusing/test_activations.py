"""Activations that the native norm has not: joined all the same, exact in value, gradient and second derivative."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.kernels.norm_act import COMPOSED, norm_act, norm_act_ref
from spfde.nn import FusedNormAct2d

MODULES = {
    "silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU, "mish": nn.Mish, "elu": nn.ELU, "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid, "tanh": nn.Tanh, "leaky_relu:0.1": lambda: nn.LeakyReLU(0.1),
}  # fmt: skip


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it."""

    def __init__(self, channels, act=nn.SiLU, drop=nn.Identity):
        super().__init__(channels)
        self.drop, self.act = drop(), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


BatchNormAct2d.__module__, BatchNormAct2d.__qualname__ = "timm.layers.norm_act", "BatchNormAct2d"


def network(act):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Identity()
    return nn.Sequential(*parts, copy.deepcopy(act), nn.Conv2d(8, 2, 1))


def results(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("act", [*COMPOSED, "leaky_relu:0.1"])
@pytest.mark.parametrize("training", [True, False])
def test_the_op_equals_torch_in_float64(act, training):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 5, 4, 3, generator=generator) for _ in range(2)]
    vectors = [torch.rand(5, generator=generator) + 0.5 for _ in range(4)]

    def run(op, dtype):
        x, residual = (t.to(dtype).requires_grad_() for t in tensors)
        mean, var, weight, bias = (v.to(dtype, copy=True) for v in vectors)
        leaves = [x, residual, weight.requires_grad_(), bias.requires_grad_()]
        y = op(x, mean, var, weight, bias, residual=residual, act=act, training=training)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = []
        if act != "hardsigmoid":  # torch has no second derivative of it
            second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        return [y, mean, var, *first, *second]

    for got, wanted in zip(run(norm_act, torch.float32), run(norm_act_ref, torch.float64), strict=True):
        rounding = 1e-4 * float(wanted.detach().abs().max())
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=rounding)


def test_an_unknown_activation_is_told():
    x = torch.randn(2, 3, 4, 4)
    for act in ("swish", "leaky_relu:x"):
        with pytest.raises(ValueError, match="expected act"):
            norm_act(x, None, None, act=act, training=True)


@pytest.mark.parametrize("name", MODULES)
def test_norms_are_joined_with_it_through_an_identity(name):
    plain, x = network(MODULES[name]()), torch.randn(4, 3, 6, 6)
    fused = spfde.fuse(copy.deepcopy(plain))
    assert [row.chain for row in spfde.fuse.report(fused).rows] == [f"norm+{name}"] * 2
    for mode in (True, False):
        for got, wanted in zip(results(fused.train(mode), x), results(plain.train(mode), x), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 3e-5)
    torch.testing.assert_close(list(fused.buffers()), list(plain.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(spfde.fuse(pickle.loads(pickle.dumps(fused)))(x), plain(x), rtol=1e-4, atol=1e-5)
    assert [type(m) for m in spfde.unfuse(fused).modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize(
    "act", [F.silu, F.hardswish, F.gelu, torch.sigmoid, torch.Tensor.tanh, lambda x: F.silu(x, inplace=True)]
)
def test_functions_and_methods(act):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return act(self.norm(self.conv(x)) + x)

    block, x = Block(), torch.randn(2, 3, 4, 4)
    wanted = results(block, x)
    fused = spfde.fuse(copy.deepcopy(block))
    if act is not torch.Tensor.tanh:
        assert spfde.fuse.report(fused).rows[0].chain.startswith("norm+add+")
    for got, exact in zip(results(fused, x), wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()) + 3e-5)


@pytest.mark.parametrize(
    "act", [nn.GELU("tanh"), nn.ELU(0.5), nn.PReLU(), nn.Softplus()], ids=["tanh", "elu", "prelu", "softplus"]
)
def test_what_is_not_known_stays_apart(act):
    rows = spfde.fuse.report(spfde.fuse(network(act))).rows
    assert {row.chain for row in rows} == {"norm"} and all("followed by" in row.reason for row in rows)


def test_norms_with_an_activation_inside():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Conv2d(8, 4, 1), BatchNormAct2d(4, nn.Identity))
    fused, x = spfde.fuse(copy.deepcopy(plain)), torch.randn(4, 3, 6, 6)
    rows = spfde.fuse.report(fused).rows
    assert [row.chain for row in rows] == ["norm+silu", "norm"] and all(row.fused for row in rows)
    assert [type(m) for m in fused] == [type(m) for m in plain] and list(fused.state_dict()) == list(plain.state_dict())
    for mode in (True, False):
        models = fused.train(mode), copy.deepcopy(fused), plain.train(mode)
        *ours, wanted = (results(model, x) for model in models)
        for got in ours:
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 3e-5)
    fused[1].act = nn.PReLU()  # asked at each call
    torch.testing.assert_close(fused[1](torch.randn(2, 8, 3, 3)).shape, torch.Size([2, 8, 3, 3]))
    assert spfde.fuse.report(fused).rows[0].chain == ""
    assert all("forward" not in vars(m) for m in spfde.unfuse(fused).modules())
    assert spfde.fuse.report(nn.Sequential(BatchNormAct2d(4, drop=lambda: nn.Dropout2d(0.1)))).rows[0].chain == ""


def test_a_frozen_prefix_takes_them():
    model = spfde.fuse(spfde.sparsify(network(nn.SiLU()), 0.5, distribution="erk")).eval()
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    for module in model[:4]:
        spfde.freezing.freeze(module)
    torch.testing.assert_close(model(x), wanted)
    assert isinstance(model[1], FusedNormAct2d)
