"""Conv1d, ConvTranspose2d and other packages' linear layers: everything a layer does, against the dense one."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import spfde
from spfde.nn import SparseConv1d, SparseConvTranspose2d, SparseLinear


class Conv1D(nn.Module):
    """As transformers has it: the weight is [inputs, outputs]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Graphs(nn.Module):
    """As torch_geometric's Linear: no nn.Linear, but computes as one."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels, self.note = in_channels, "kept"
        self.weight, self.bias = nn.Parameter(torch.randn(out_channels, in_channels)), None

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
Graphs.__module__, Graphs.__qualname__ = "torch_geometric.nn.dense.linear", "Linear"

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1), (3, 8, 17)),
    "conv1d strided": (lambda: nn.Conv1d(8, 12, 5, 3, 2, 2, groups=2, bias=False), (3, 8, 31)),
    "conv1d one tap": (lambda: nn.Conv1d(8, 12, 1, 2), (3, 8, 17)),
    "conv1d same": (lambda: nn.Conv1d(8, 12, 4, padding="same", padding_mode="circular"), (3, 8, 17)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1), (2, 8, 5, 7)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(8, 12, (3, 2), (2, 3), (1, 0), (1, 2), 2, False, (1, 2)), (2, 8, 5, 7),
    ),
    "transposed one pixel": (lambda: nn.ConvTranspose2d(8, 12, 4), (2, 8, 1, 1)),
    "Conv1D": (lambda: Conv1D(12, 8), (2, 5, 8)),
    "Graphs": (lambda: Graphs(8, 12), (9, 8)),
}  # fmt: skip
KINDS = pytest.mark.parametrize("name", LAYERS)


def made(name, sparsity=0.5, **options):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    dense = make()
    return dense, spfde.sparsify(copy.deepcopy(dense), sparsity, **options), torch.randn(shape)


def masked(dense, layer):
    """The dense layer with zeros where nothing is stored, in float64."""
    twin = copy.deepcopy(dense).double()
    with torch.no_grad():
        twin.weight.mul_(layer.mask())
    return twin


def at_stored(layer, dense):
    """The elements of a tensor of the dense weight's shape that are stored, in the order of `values`."""
    return layer.grid.cut(layer.rows_first(dense))[layer.positions()]


OTHERS = [pytest.param(pattern, marks=pytest.mark.full) for pattern in ("fan-in", "2:4", "channel")]


@KINDS
@pytest.mark.parametrize("pattern", ["unstructured", "block:2x2", *OTHERS])
def test_outputs_and_gradients_equal_the_masked_dense_layer(name, pattern):
    dense, layer, x = made(name, None if pattern == "2:4" else 0.5, pattern=pattern)
    twin, x64 = masked(dense, layer), x.double().requires_grad_()
    x.requires_grad_()
    y, wanted = layer(x), twin(x64)
    torch.testing.assert_close(y, wanted.float(), rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    wanted.backward(cotangent.double())
    torch.testing.assert_close(x.grad, x64.grad.float(), rtol=1e-4, atol=1e-4)
    stored = at_stored(layer, twin.weight.grad).float()
    torch.testing.assert_close(layer.values.grad[: layer.nnz], stored, rtol=1e-4, atol=1e-4)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad.float(), rtol=1e-4, atol=1e-4)


@KINDS
def test_second_derivatives(name):
    _, layer, x = made(name)
    layer.double()
    x = x.double().requires_grad_()
    values = layer.values.detach().clone().requires_grad_()

    def function(x, values):
        return torch.func.functional_call(layer, {"values": values}, (x,))

    assert torch.autograd.gradcheck(function, (x, values), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, values), fast_mode=True)


@KINDS
def test_second_derivatives_of_the_kernels(name):
    dense, layer, x = made(name)
    twin, x64 = masked(dense, layer), x.double().requires_grad_()
    x.requires_grad_()

    def penalty(module, x):
        grad = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)[0]
        return grad.square().sum()

    penalty(layer, x).backward()
    penalty(twin, x64).backward()
    wanted = at_stored(layer, twin.weight.grad).float()
    torch.testing.assert_close(
        layer.values.grad[: layer.nnz], wanted, rtol=1e-3, atol=1e-2 * wanted.abs().mean().item()
    )


@KINDS
def test_it_is_stored_copied_saved_and_given_back(name):
    dense, layer, x = made(name)
    assert layer.mask().shape == layer.dense_weight().shape == layer.weight.shape == dense.weight.shape
    torch.testing.assert_close(layer.dense_weight(), dense.weight.detach() * layer.mask())
    back = spfde.densify(copy.deepcopy(layer))
    assert type(back) is type(dense) and repr(back) == repr(dense)
    assert {k: v for k, v in vars(back).items() if type(v) in (int, str, tuple)} == {
        k: v for k, v in vars(dense).items() if type(v) in (int, str, tuple)
    }
    for option in ("stride", "padding", "kernel_size", "dilation", "groups", "nf", "nx", "in_channels", "note"):
        assert getattr(layer, option, None) == getattr(dense, option, None)  # parents may ask
    y = layer(x)
    torch.testing.assert_close(back(x), y, rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = made(name, seed=1)[1]
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), y) and torch.equal(other.mask(), layer.mask())
    other = made(name, seed=1)[1]
    other.load_state_dict(back.state_dict())  # a dense checkpoint
    assert torch.equal(other.mask(), layer.mask())
    for same in (copy.deepcopy(layer), *([pickle.loads(pickle.dumps(layer))] if "1d" in name else [])):
        assert torch.equal(same(x), y)
        assert type(same.to_dense()) is type(dense)


@KINDS
def test_masks_grow_where_the_dense_gradient_is_largest(name):
    dense, layer, x = made(name, 0.8)
    model, twin = nn.Sequential(layer), masked(dense, layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    topology = spfde.topology.RigL(model, optimizer, total_steps=10, every=1, drop_fraction=0.7)
    before = layer.mask()
    cotangent = torch.randn_like(layer(x))
    model(x).backward(cotangent)
    twin(x.double()).backward(cotangent.double())
    optimizer.step()
    weight = layer.dense_weight()
    assert topology.step(), topology.reason
    born, out = layer.mask() & ~before, ~layer.mask() & ~before
    gradient = twin.weight.grad.abs()
    assert born.any() and gradient[born].min() >= gradient[out].max() * (1 - 1e-5)
    assert torch.equal(layer.dense_weight(), weight * (layer.mask() & before))


@KINDS
def test_it_is_frozen_counted_and_summed_up(name):
    _, layer, x = made(name)
    model = nn.Sequential(layer)
    model(x)
    assert spfde.summary(model).rows[0].runs_sparse == (layer.kernel == "native")
    work = spfde.flops.layer_work(model, x)["0"]
    dense = spfde.flops.layer_work(nn.Sequential(LAYERS[name][0]()), x)["0"]
    assert (work.positions, work.weights) == (dense.positions, layer.stored)
    spfde.freezing.freeze(layer)
    assert not any(p.requires_grad for p in model.train().parameters()) and not layer.training
    spfde.freezing.unfreeze(layer)
    assert all(p.requires_grad for p in model.parameters())


@KINDS
@pytest.mark.parametrize("init", ["magnitude", "snip", "given"])
def test_inits_see_the_weight_as_torch_has_it(name, init):
    dense, _, x = made(name)
    if init == "given":
        scores = torch.rand(dense.weight.shape)
        layer = spfde.sparsify(copy.deepcopy(dense), 0.75, init={"": scores})
    elif init == "magnitude":
        layer, scores = spfde.sparsify(copy.deepcopy(dense), 0.75, init=init), dense.weight.detach().abs()
    else:
        options = dict(data=(x, torch.zeros(1)), loss_fn=lambda y, _: y.square().sum())
        layer = spfde.sparsify(copy.deepcopy(dense), 0.75, init=init, **options)
        dense(x).square().sum().backward()
        scores = (dense.weight * dense.weight.grad).detach().abs()
    assert scores[layer.mask()].min() >= scores[~layer.mask()].max() * (1 - 1e-5)


@pytest.mark.parametrize("name", ["conv1d", "transposed", *(pytest.param(n, marks=pytest.mark.full) for n in LAYERS)])
def test_compiled_it_computes_the_same(name):
    _, layer, x = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    wanted, got = (torch.autograd.grad(f(x).square().sum(), list(layer.parameters())) for f in (layer, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@KINDS
def test_other_precisions(name):
    dense, layer, x = made(name)
    twin = masked(dense, layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), twin(x.double()), rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(layer.double()(x.double()), twin(x.double()))


def test_a_transposed_convolution_takes_an_output_size_and_single_images():
    dense, layer, x = made("transposed")
    twin = masked(dense, layer).float()
    torch.testing.assert_close(layer(x, [11, 14]), twin(x, [11, 14]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), twin(x[0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected x of shape .batch, 8, height, width., got .2, 9, 5, 7."):
        layer(torch.randn(2, 9, 5, 7))
    with pytest.raises(ValueError, match="output_padding .1, 1. and stride .1, 1."):
        spfde.sparsify(nn.ConvTranspose2d(8, 8, 3, dilation=2, output_padding=1))


def test_from_dense_checks():
    for cls, right, wrong in (
        (SparseConv1d, nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3)),
        (SparseConvTranspose2d, nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3)),
    ):
        with torch.no_grad():
            right.weight.view(-1)[::2] = 0
        assert torch.equal(cls.from_dense(right).mask(), right.weight != 0)
        with pytest.raises(TypeError, match="expected a torch.nn"):
            cls.from_dense(wrong)
        with pytest.raises(ValueError, match="expected mask to be bool"):
            cls.from_dense(right, torch.ones(3, 3, 3, dtype=torch.bool))


def test_a_subclass_is_registered_with_the_layer_it_computes_as():
    class Own(nn.Linear):
        def extra_repr(self):
            return "mine"

    spfde.convert.register(Own, SparseLinear)
    try:
        layer = spfde.sparsify(Own(8, 4), 0.5)
        assert type(layer) is SparseLinear and type(layer.to_dense()) is Own
    finally:
        spfde.convert.unregister(Own)
