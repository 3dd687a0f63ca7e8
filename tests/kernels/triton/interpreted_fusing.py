"""Fused layers in Triton's interpreter: one kernel for a frozen chain, and what ran before for every other."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import spfde
from spfde.kernels import clock
from spfde.kernels.triton import interpreting
from spfde.nn import FusedNormAct2d, SparseConv2d, SparseLayer, SparseLinear

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")


class Block(nn.Module):
    """act(norm(conv(x)) + x), the activation given by the test."""

    def __init__(self, act="relu", added=True, bias=False, stride=1, kernel=3, norm=None, **options):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, kernel, stride, kernel // 2, bias=bias, **options)
        self.norm = nn.BatchNorm2d(16, **(norm or {}))
        self.act, self.added = {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "none": nn.Identity()}[act], added

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y + residual if self.added else y)


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, act, bias=True):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(32, 48, bias), nn.Linear(48, 16, bias), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def sparse(model: nn.Module, kernel: str = "triton", fused: bool = True, pattern: str = "block:16x16") -> nn.Module:
    """The model with statistics and sparse layers, frozen."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.copy_(torch.randn(m.num_features, generator=generator))
            m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)
        if isinstance(m, nn.BatchNorm2d) and m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5, generator)
            nn.init.uniform_(m.bias, -1, 1, generator)
    names = {n: 0.5 for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[1] > 3}
    model = spfde.sparsify(model, pattern=pattern, distribution=names)
    for m in model.modules():
        if isinstance(m, SparseLayer):
            m.kernel = kernel
    model = spfde.freezing.freeze(model)
    return spfde.fuse(model) if fused else model


def exact(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The model unfused, dense and in float64."""
    twin = spfde.densify(spfde.unfuse(copy.deepcopy(model))).double()
    return twin(*(x.detach().double() for x in inputs)).detach()


def close(y: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    assert y.shape == expected.shape
    assert float((y.double() - expected).norm()) <= limit * float(expected.norm())


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the kernels that start from now on, and "norm" for a norm that is called on its own."""
    from spfde.kernels.triton import conv2d, norm_act, sddmm, spmm
    from spfde.nn import norm

    names: list[str] = []
    for module in (conv2d, norm_act, sddmm, spmm):
        run = module.launch

        def spy(kernel, grid, *args, run=run, **options):
            names.extend([kernel.fn.__name__] if all(grid) else [])
            run(kernel, grid, *args, **options)

        monkeypatch.setattr(module, "launch", spy)
    call = norm.norm_act
    monkeypatch.setattr(norm, "norm_act", lambda *args, **options: names.append("norm") or call(*args, **options))
    return names


@pytest.fixture
def whole(monkeypatch) -> list[str]:
    """Kinds of the layers whose kernel does what follows them, from now on."""
    kinds: list[str] = []
    for name, kind in (("conv2d", "conv"), ("spmm", "linear")):
        module = import_module(f"spfde.kernels.{name}")  # its name there is the function's
        run = module.compute_fused
        spy = lambda *args, run=run, kind=kind: kinds.append(kind) or run(*args)  # noqa: E731
        monkeypatch.setattr(module, "compute_fused", spy)
    return kinds


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
    assert launched == ["norm", *["multiply"] * convolved, "spmm_kernel"]  # the stem is dense, the head linear
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
        model(x, residual.float())  # torch adds them in float32
        assert whole == ["conv"]
    close(y, exact(model, x, residual), 2e-2)


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
    "float64": (lambda m: m.double()(images(2, 16, 4, 4).double(), None), "expected float32 input for kernel 'triton'"),
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
    model.conv.window = model.conv.window._replace(groups=2)
    with pytest.raises(ValueError, match="got: no sparse kernel for groups there"):
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
