"""Convolutions that standardise their weight, or pad by their input's size: equal to the masked dense layer."""

import copy
import pickle
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.nn import SparseConv2dSame, SparseStdConv2d
from spfde.topology.probes import GradientProbes


class Same(nn.Conv2d):
    """As timm's Conv2dSame."""

    def forward(self, x):
        return self._conv_forward(self.padded(x), self.weight, self.bias)

    def padded(self, x):
        more = [
            max((ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        return F.pad(x, (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2))


class Std(Same):
    """As timm's StdConv2d and ScaledStdConv2d."""

    def __init__(self, *sizes, gained=False, same_pad=False, **options):
        super().__init__(*sizes, **options)
        self.eps, self.same_pad = 1e-6, same_pad
        if gained:
            self.scale = self.weight[0].numel() ** -0.5
            self.gain = nn.Parameter(torch.linspace(0.5, 2, len(self.weight)).view(-1, 1, 1, 1))

    def forward(self, x):
        gain = (self.gain * self.scale).view(-1) if hasattr(self, "gain") else None
        weight = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(weight, None, None, gain, training=True, eps=self.eps).view_as(self.weight)
        return self._conv_forward(self.padded(x) if self.same_pad else x, weight, self.bias)


@pytest.fixture(autouse=True)
def kinds():
    spfde.convert.register(Same, SparseConv2dSame)
    spfde.convert.register(Std, SparseStdConv2d)
    yield
    spfde.convert.unregister(Same)
    spfde.convert.unregister(Std)


LAYERS = {
    "plain": lambda: Std(6, 8, 3, padding=1),
    "gained": lambda: Std(6, 8, 3, padding=1, gained=True, bias=False),
    "strided": lambda: Std(5, 7, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), gained=True),
    "grouped": lambda: Std(8, 24, 3, padding=1, groups=2, gained=True),
    "depthwise": lambda: Std(6, 6, 3, padding=1, groups=6),
    "pointwise": lambda: Std(6, 8, 1, stride=2),
    "same mode": lambda: Std(6, 8, 3, padding="same", gained=True),
    "reflected": lambda: Std(6, 8, 3, padding=1, padding_mode="reflect"),
    "same pad": lambda: Std(6, 8, 3, stride=2, same_pad=True, gained=True),
    "same": lambda: Same(6, 8, (3, 5), stride=(2, 3), dilation=(2, 1)),
}


def made(name, sparsity=0.6, pattern="unstructured", double=True):
    torch.manual_seed(0)
    dense = LAYERS[name]()
    dense = dense.double() if double else dense
    distribution = "uniform" if pattern == "2:4" else "erk"
    sparse = spfde.sparsify(copy.deepcopy(dense), sparsity, pattern=pattern, distribution=distribution)
    assert type(sparse) is (SparseConv2dSame if name == "same" else SparseStdConv2d)
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        masked.weight.mul_(sparse.mask())
    return sparse, masked


def close(ours, theirs):
    tolerance = 1e-9 if theirs.dtype == torch.float64 else 1e-4
    assert (ours - theirs).abs().max() <= tolerance * max(1e-3, theirs.abs().max()), (ours, theirs)


@pytest.mark.parametrize("sparsity", [0, 0.6, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_equal_the_masked_layer(name, sparsity):
    compare(*made(name, sparsity))


@pytest.mark.parametrize("pattern", ["block:4x1", "block:3x2", "block:1x4", "2:4", "fan-in", "channel"])
@pytest.mark.parametrize("name", ["gained", pytest.param("grouped", marks=pytest.mark.full)])
def test_every_pattern(name, pattern):
    compare(*made(name, None if pattern == "2:4" else 0.5, pattern))


@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_native_kernels(kernel, layout):
    sparse, masked = made("gained", double=False)
    sparse.kernel = kernel
    compare(sparse, masked, layout)


def compare(sparse, masked, layout=torch.contiguous_format):
    dtype = masked.weight.dtype
    for size in ((2, masked.in_channels, 7, 9), (masked.in_channels, 6, 5), (0, masked.in_channels, 7, 7)):
        x = torch.randn(size, dtype=dtype)
        x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, wanted = sparse(ours), masked(theirs)
        assert y.shape == wanted.shape
        if not y.numel():
            continue
        close(y, wanted)
        cotangent = torch.randn_like(wanted)
        for model, output in ((sparse, y), (masked, wanted)):
            model.zero_grad()
            output.backward(cotangent)
        close(ours.grad, theirs.grad)
        for name, parameter in masked.named_parameters():
            if name == "weight":
                held = copy.deepcopy(sparse)
                held.values.data.copy_(sparse.values.grad)
                close(held.dense_weight(), parameter.grad * sparse.mask())
            else:
                close(getattr(sparse, name).grad, parameter.grad)


@pytest.mark.parametrize("name", ["gained", "same pad", "same"])
def test_it_comes_back_copies_and_loads(name):
    sparse, masked = made(name)
    x = torch.randn(2, 6, 9, 8).double()
    wanted = masked(x)
    back = spfde.densify(copy.deepcopy(sparse))
    assert type(back) is type(masked) and back.state_dict().keys() == masked.state_dict().keys()
    assert all(torch.equal(tensor, masked.state_dict()[key]) for key, tensor in back.state_dict().items())
    other, _ = made(name)
    other.load_state_dict(masked.state_dict())
    for layer in (back, copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), other):
        close(layer(x), wanted)


def test_second_derivatives():
    sparse = spfde.sparsify(Std(2, 3, 2, gained=True).double(), 0.5)
    x, values, gain = torch.randn(1, 2, 3, 3).double(), sparse.values.detach(), sparse.gain.detach()

    def run(x, values, gain):
        return torch.func.functional_call(sparse, {"values": values, "gain": gain}, x)

    inputs = tuple(t.clone().requires_grad_() for t in (x, values, gain))
    assert torch.autograd.gradcheck(run, inputs) and torch.autograd.gradgradcheck(run, inputs, atol=1e-4)


@pytest.mark.parametrize("name", ["gained", "strided", "grouped", "same pad"])
def test_a_watched_step_sees_the_gradient_of_the_weight_itself(name):
    sparse, masked = made(name)
    probes = GradientProbes()
    probes.arm({"": sparse})
    for _ in range(2):  # accumulated
        x = torch.randn(3, masked.in_channels, 8, 7).double()
        y, wanted = sparse(x), masked(x)
        close(y, wanted)
        cotangent = torch.randn_like(wanted)
        y.backward(cotangent)
        wanted.backward(cotangent)
    found = torch.cat([blocks for _, blocks in probes.of[""].slabs()]).view_as(masked.weight)
    close(found, masked.weight.grad)
    held = copy.deepcopy(sparse)
    held.values.data.copy_(sparse.values.grad)
    close(held.dense_weight(), masked.weight.grad * sparse.mask())


@pytest.mark.parametrize("method", ["SET", "RigL", "TopKAST"])
def test_masks_move(method):
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS["plain"](), nn.ReLU(), Std(8, 8, 3, gained=True), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 6, 6, 6)
    model(x)
    spfde.sparsify(model, 0.6, distribution="erk")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    topology = getattr(spfde.topology, method)(model, optimizer, total_steps=40, every=2)
    before = model[2].positions()
    for _ in range(6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        topology.step()
    assert not torch.equal(before, model[2].positions())
    topology.finish()
    y = model(x)
    torch.testing.assert_close(y, spfde.densify(copy.deepcopy(model))(x), rtol=1e-3, atol=1e-4)


def test_half_precision_sums_in_float32():
    sparse, masked = made("gained", double=False)
    x = torch.randn(2, 6, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = sparse(x), masked(x)
    exact = masked(x)
    assert y.dtype == wanted.dtype == torch.bfloat16
    assert (y - exact).abs().max() <= 2 * (wanted - exact).abs().max() + 2**-8 * exact.abs().max()


@pytest.mark.full
def test_a_compiled_layer_follows_a_move():
    sparse, _ = made("gained", double=False)
    run = torch.compile(sparse, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 5, 5)
    close(run(x), sparse(x))
    sparse.move_to(sparse.positions().flip(0)[: sparse.nnz // 2].flip(0))
    torch._dynamo.config.patch(error_on_recompile=True)(lambda: close(run(x), sparse(x)))()


def test_a_layer_without_eps_is_named():
    layer = Std(6, 8, 3)
    layer.eps = None
    with pytest.raises(ValueError, match="without eps"):
        spfde.sparsify(layer, 0.5)
