"""Frozen chains in Triton's interpreter: one kernel for a layer and what follows it, against float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from kernels.triton.fused_models import MLP, Block, close, exact, images, sparse
from torch import nn

import spfde
from spfde.freezing.prefix.linear import FoldedLinear
from spfde.kernels import clock
from spfde.kernels.triton import interpreting
from spfde.nn import SparseConv2d

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")


def test_this_is_the_interpreter():
    assert interpreting()


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_frozen_resnet_launches_one_kernel_for_each_chain(launched, shortcut):
    torch.manual_seed(0)
    model = sparse(spfde.models.ResNet(8, shortcut=shortcut))
    x = images(2, 3, 8, 8)
    launched.clear()
    y = model(x)
    chains = [layer.chain for layer in spfde.fuse.report(model).layers]
    convolved = sum(isinstance(m, SparseConv2d) for m in model.modules())
    assert (launched[0], launched.count("norm")) == ("norm", 1)  # the stem is dense
    assert len(launched) == 1 + convolved + 1  # and the head
    assert len(chains) == convolved
    assert chains.count("conv+norm+relu") == chains.count("conv+norm+add+relu") == 3
    assert chains.count("conv+norm") == (2 if shortcut == "B" else 0)
    close(y, exact(model, x))


def test_a_frozen_prefix_alone_is_launched_so_and_the_rest_is_trained(launched):
    torch.manual_seed(0)
    model = sparse(spfde.models.ResNet(8))
    spfde.freezing.unfreeze(model.layer3)
    unfused = spfde.unfuse(copy.deepcopy(model))
    results, norms = [], []
    for net in (model, unfused):
        launched.clear()
        loss = net.train()(images(2, 3, 8, 8)).square().sum()
        norms.append(launched.count("norm"))
        results.append([loss.detach(), *torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert norms == [3, 0]  # the stem's and those of layer3: unfused, norms are torch's
    spfde.freezing.unfreeze(model)
    launched.clear()
    model(images(2, 3, 8, 8))
    assert launched.count("norm") == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("act", ["none", "relu", "relu6"])
def test_every_end_in_every_precision(whole, act, added, dtype):
    model = sparse(Block(act, added)).to(dtype)
    x, residual = images(2, 16, 5, 4, dtype=dtype), images(2, 16, 5, 4, dtype=dtype, seed=1)
    y = model(x, residual)
    assert whole == ["conv"] and y.dtype == dtype
    close(y, exact(model, x, residual), {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [
    {"bias": True}, {"norm": {"affine": False}, "bias": True}, {"kernel": 1}, {"stride": 2}, {"kernel": 1, "stride": 2},
    {"padding_mode": "reflect"}, {"dilation": 2},
], ids=str)  # fmt: skip
def test_every_convolution(whole, options, memory):
    model = sparse(Block(**options))
    x = images(2, 16, 6, 5).contiguous(memory_format=memory)
    residual = images(*model.conv(x).shape, seed=1)
    y = model(x, residual)
    assert whole == ["conv"] and y.is_contiguous(memory_format=memory)
    close(y, exact(model, x, residual))
    assert model.conv.choice.kernel == "triton"


def test_linear_and_convolution_kernels_of_one_precision(whole, launched, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = sparse(Block(kernel=1))
    x, residual = images(2, 16, 3, 3), images(2, 16, 3, 3, seed=1)
    close(model(x, residual), exact(model, x, residual))
    assert launched == ["spmm_kernel"]


ACTS = {
    "relu": nn.ReLU(), "relu in place": nn.ReLU(True), "relu6": nn.ReLU6(), "gelu": nn.GELU(), "F.relu": F.relu,
    "F.relu in place": lambda z: F.relu(z, inplace=True), "relu_": lambda z: z.relu_(), "F.gelu": F.gelu,
    "F.relu6 in place": lambda z: F.relu6(z, inplace=True), "torch.relu": torch.relu,
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_activations_of_linear_layers(whole, act):
    model = sparse(MLP(act))
    x = images(3, 5, 32)
    close(model(x), exact(model, x))
    assert whole == ["linear"]
    if isinstance(act, nn.Module):
        handle = act.register_forward_hook(lambda *_: whole.append("seen"))
        model(x)
        handle.remove()
        assert whole == ["linear", "seen"]
        whole.pop()
    x = x.requires_grad_()
    dx = torch.autograd.grad(model(x).square().sum(), x)[0]
    assert whole == ["linear"]
    torch.testing.assert_close(dx, torch.autograd.grad(spfde.unfuse(model)(x).square().sum(), x)[0])


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1", "block:32x16"])
@pytest.mark.parametrize("shape", [(32,), (0, 32), (2, 3, 32)])
def test_any_pattern_and_shape_of_a_linear_layer(whole, shape, pattern):
    model = sparse(MLP(nn.GELU(), bias=False), pattern=pattern)
    x = images(*shape)
    close(model(x), exact(model, x))
    assert whole == ["linear"]


def test_half_precision_by_autocast(whole):
    model = sparse(Block(norm={}))
    x, residual = images(2, 16, 4, 4), images(2, 16, 4, 4, dtype=torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, residual)
        assert whole == ["conv"] and y.dtype == torch.bfloat16
        wide, expected = (m(x, residual.float()) for m in (model, spfde.unfuse(copy.deepcopy(model))))
        assert whole == ["conv", "conv"] and wide.dtype == expected.dtype == torch.float32
    for sum_ in (y, wide):
        close(sum_, exact(model, x, residual), 2e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_need_be_frozen(whole, mode):
    model = spfde.freezing.unfreeze(sparse(Block())).eval()
    x, residual = images(2, 16, 4, 4), images(2, 16, 4, 4, seed=1)
    with mode():
        y = model(x, residual)
    assert whole == ["conv"]
    model(x, residual)
    assert whole == ["conv"]
    close(y, exact(model, x, residual))


def test_it_counts_as_the_time_of_a_kernel():
    model = sparse(Block())
    with clock.measure() as measured:
        model(images(2, 16, 4, 4), images(2, 16, 4, 4))
    assert measured.seconds > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_does_the_same(whole, copied):
    model = sparse(Block())
    x, residual = images(2, 16, 4, 4), images(2, 16, 4, 4, seed=1)
    assert torch.equal(copied(model)(x, residual), model(x, residual))
    assert whole == ["conv", "conv"]
    spfde.unfuse(model)(x, residual)
    assert whole == ["conv", "conv"]


def test_weights_that_move_are_the_ones_used(whole):
    model = sparse(Block())
    x, residual = images(2, 16, 4, 4), images(2, 16, 4, 4, seed=1)
    model(x, residual)
    model.norm.running_var.data.mul_(3)
    model.conv.values.data.mul_(2)
    close(model(x, residual), exact(model, x, residual))
    assert whole == ["conv", "conv"]


def test_linear_layers_of_a_frozen_front_end_in_their_kernels():
    torch.manual_seed(0)
    model = spfde.models.ViT(32, 2, 2, image_size=8, patch_size=4, num_classes=10)
    model, x = spfde.sparsify(model, 0.5, pattern="block:16x16"), images(2, 3, 8, 8)
    for layer in model.modules():
        if isinstance(layer, spfde.nn.SparseLinear):
            layer.kernel = "triton"
    parts = spfde.freezing.blocks(model, x)
    parts[0].freeze()
    expected, ended, end = model(x), [], FoldedLinear.with_epilogue
    with pytest.MonkeyPatch.context() as patch, spfde.freezing.Prefix(model, parts)() as prefix:
        patch.setattr(FoldedLinear, "with_epilogue", lambda *args: ended.append(end(*args)) or ended[-1])
        torch.testing.assert_close(model(x), expected)
    assert "blocks.0.mlp.fc1  linear+gelu" in str(prefix) and "blocks.0.mlp.fc2  linear+add" in str(prefix)
    assert len(ended) == 3 and all(y is not None for y in ended)
