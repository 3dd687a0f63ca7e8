"""Sparse layers called with what follows them: which are, and that without Triton nothing is another number."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fusing.networks import NETWORKS, built, images, sparse
from torch import nn
from torch.utils.checkpoint import checkpoint

import spfde
from spfde.kernels.registry import get
from spfde.nn import FusedNormAct2d, SparseConv2d, SparseLayer


def chains(model):
    return {layer.name: layer.chain for layer in spfde.fuse.report(model).layers}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_computes_the_same_bits(name, recompute, monkeypatch):
    monkeypatch.setattr(type(get("native").products["conv2d"]), "normed", None)  # other bits, see below
    apart = sparse(built(name))
    together = spfde.fuse(copy.deepcopy(apart), recompute=recompute)
    monkeypatch.setattr("spfde.fusing.forward.merge", lambda *_: [])
    spfde.fuse(apart, recompute=recompute)
    results = []
    for model in (apart, pickle.loads(pickle.dumps(together)), together):
        y = model(images())
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
        model.eval()
        results[-1].append(model(images()).detach())
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))


def nodes(y):
    """The names of the autograd nodes that lead to y."""
    found, seen = [y.grad_fn], set()
    while found:
        node = found.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [parent for parent, _ in node.next_functions]
    return [type(node).__name__ for node in seen]


def trained(model, dtype=torch.float32):
    """Output, gradients and buffers of one training step of a batch that fills lanes."""
    x = torch.randn(33, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = model.to(dtype)(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), list(model.parameters())), *model.buffers()]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["resnet", "resnet20", "mobilenet", "vgg"])
def test_convolutions_and_norms_as_one_op_are_as_close_to_float64(name, recompute):
    apart = sparse(built(name))
    together = spfde.fuse(copy.deepcopy(apart), recompute=recompute)
    reference = copy.deepcopy(apart)
    for layer in (m for m in reference.modules() if isinstance(m, SparseLayer)):
        layer.kernel = "reference"
    exact = trained(reference, torch.float64)
    for got, theirs, right in zip(trained(together), trained(apart), exact, strict=True):
        error, limit = (float((t.double() - right).norm()) for t in (got, theirs))
        assert error <= 4 * limit + 1e-6 * float(right.double().norm())


def test_a_convolution_and_its_norm_are_one_op_unless_someone_looks_between():
    model = spfde.fuse(sparse(built("resnet")))
    one = "_Conv2dNormActBackward"
    assert nodes(model(images())).count(one) == 8  # all but the pointwise shortcut
    for change in (model.layer1[0].conv1.register_forward_hook, model.layer1[1].bn2.register_forward_pre_hook):
        handle = change(lambda *_: None)
        assert nodes(model(images())).count(one) == 7
        handle.remove()
    model.layer1[0].conv1._grad_probe = lambda dy, x: None
    assert nodes(model(images())).count(one) == 7
    model.layer1[0].conv1._grad_probe = None
    assert nodes(model.eval()(images())).count(one) == 8  # for their gradients
    with torch.no_grad():
        assert model(images()).grad_fn is None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_inside_a_checkpoint_gradients_are_the_same_bits(recompute, reentrant):
    model, found = spfde.fuse(sparse(built("resnet")), recompute=recompute), []
    for run in (lambda block, x: block(x), partial(checkpoint, use_reentrant=reentrant)):
        x = torch.randn(33, 8, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = run(model.layer1, x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in model.layer1.parameters())])
        model.zero_grad()
    assert all(map(torch.equal, *found))


def test_under_autocast_the_parts_run():
    model = spfde.fuse(sparse(built("resnet")))
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Conv2dNormActBackward" not in nodes(model(images()))


def test_where_weights_are_frozen_one_by_one_their_gradient_is_zero():
    apart = sparse(built("resnet"))
    spfde.freezing.freeze_weights(apart.layer1[0].conv1, [0, 3])
    together = spfde.fuse(copy.deepcopy(apart))
    for got, wanted in zip(trained(together), trained(apart), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
    values = together.layer1[0].conv1.values
    y = together(images())
    assert "_Conv2dNormActBackward" in nodes(y)
    assert 0 < torch.autograd.grad(y.sum(), values)[0].count_nonzero() < values.numel()


def test_a_batch_that_raises_is_not_counted():
    model = spfde.fuse(sparse(built("resnet")))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.ones(1, 3, 1, 1))
    assert model.layer1[0].bn1.num_batches_tracked == 0
    model(images())
    assert model.layer1[0].bn1.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_those_of_the_parts(momentum):
    apart = sparse(built("resnet"))
    for norm in apart.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    together = spfde.fuse(copy.deepcopy(apart))
    for model in (apart, together):
        for seed in range(3):
            with torch.no_grad():
                model(images(seed))
    for got, wanted in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_called_together_in_a_resnet():
    model = sparse(built("resnet"))
    expected = {
        "layer1.0.conv1": "conv+norm+relu",
        "layer1.0.conv2": "conv+norm+add+relu",
        "layer1.1.conv1": "conv+norm+relu",
        "layer1.1.conv2": "conv+norm+add+relu",
        "layer2.0.conv1": "conv+norm+relu",
        "layer2.0.conv2": "conv+norm+add+relu",
        "layer2.0.downsample.0": "conv+norm",
        "layer2.1.conv1": "conv+norm+relu",
        "layer2.1.conv2": "conv+norm+add+relu",
    }
    assert dict(sorted(chains(model).items())) == expected
    assert "forward" not in vars(model.layer2[0].downsample)
    spfde.fuse(model)
    assert "forward" in vars(model.layer2[0].downsample)
    assert dict(sorted(chains(model).items())) == expected
    cpu = "on a CPU in training 8 norms share passes with the native kernel of the layer before"
    gpu = "one kernel on a GPU, where layer.kernel is 'cuda' (with a norm, when frozen):\n"
    assert f"what follows them\n{cpu}\n{gpu}" in str(spfde.fuse.report(model))
    assert "forward" not in vars(spfde.unfuse(model).layer2[0].downsample)


def test_layers_are_listed_where_a_gpu_has_a_kernel_for_them():
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 32)),
        *(nn.ReLU(), nn.Linear(32, 4)),
    )
    report = spfde.fuse.report(spfde.sparsify(model, 0.5, pattern="block:16x16"))
    groups = "the products of kernel 'cuda' do not end so; no sparse kernel for groups there"
    assert [layer.reason for layer in report.layers] == ["", groups, ""]
    assert str(report).splitlines()[-4:] == [
        "one kernel on a GPU, where layer.kernel is 'triton' (with a norm, when frozen):",
        "3   conv+norm+relu",
        "10  linear+relu",
        f"sparse layers that run apart: 1, {groups}",
    ]


def test_single_weights_are_listed_with_the_kernels_that_end_so():
    model = nn.Sequential(
        *(nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten()),
        *(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU()),
    )
    names = {name: 0.5 for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    report = spfde.fuse.report(spfde.sparsify(model, distribution=names))
    apart = "the products of kernel 'cuda' do not end so; "
    apart += "only blocks with sides of 16, 32, 64 or 128 have a sparse kernel there"
    assert [(layer.kernels, layer.reason) for layer in report.layers] == [
        (("cuda",), ""), ((), apart), (("cuda", "triton"), ""), (("triton",), "")
    ]  # fmt: skip
    assert str(report).splitlines()[-2:] == ["7  linear+gelu", f"sparse layers that run apart: 1, {apart}"]


@pytest.mark.parametrize(("name", "kinds"), [
    ("vgg", {"conv+norm+relu", "linear+relu"}), ("vgg without norms", {"conv+relu", "linear+relu"}),
    ("mobilenet", {"conv+norm+relu6", "conv+norm+add", "conv+norm"}),
    ("functional", {"conv+norm+add+relu", "conv+norm+add+relu6"}),
])  # fmt: skip
def test_what_is_called_together_elsewhere(name, kinds):
    assert set(chains(sparse(built(name))).values()) == kinds


def test_dense_layers_are_left_alone_until_they_are_sparse_and_fused_again():
    model = spfde.fuse(built("resnet"))
    assert chains(model) == {}
    assert len(chains(spfde.fuse(sparse(model)))) == 9
    expected = copy.deepcopy(model).eval()(images())
    assert chains(spfde.densify(model)) == {}  # the forwards of before still fit
    torch.testing.assert_close(model.eval()(images()), expected, rtol=1e-4, atol=1e-5)


class Case(nn.Module):
    """A convolution, a norm, two activations; the test gives what is done with them."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Linear(12, 12)
        self.first, self.gelu, self.tanh = nn.Conv2d(3, 4, 1), nn.GELU(), nn.GELU("tanh")
        self.doubled, self.act, self.own = Doubled(), nn.ReLU(), FusedNormAct2d(4)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


class Doubled(nn.Module):
    """Changes what it is given."""

    def forward(self, x):
        return x.mul_(2)


def late(m, x):
    """What the layer reads is changed before its reader is called."""
    x = m.first(x)
    y = m.conv(x)
    return F.relu(m.norm(y) + m.doubled(x))


def safe(m, x):
    """What the layer reads is its own."""
    x = m.first(x)
    y = m.conv(F.relu(m.norm(x)))
    return F.relu(m.norm(y) + m.doubled(x))


def seen(m, x):
    """The same, by another name of it that nothing else reads."""
    x = m.first(x)
    y = m.conv(x.view_as(x))
    return F.relu(m.norm(y) + m.doubled(x))


CASES = {
    "late": (late, {}),
    "by another name": (seen, {}),
    "safe": (safe, {"conv": "conv+norm+add+relu"}),
    "read twice": (lambda m, x: (lambda y: m.norm(y) + y)(m.conv(m.first(x))), {}),
    "given twice": (lambda m, x: (lambda y: torch.add(y, y))(m.conv(m.first(x))), {}),
    "not read by either": (lambda m, x: m.conv(m.first(x)).sigmoid(), {}),
    "a norm after a linear layer": (lambda m, x: m.norm(m.linear(m.first(x))), {}),
    "another gelu": (lambda m, x: m.tanh(m.linear(m.first(x))), {}),
    "another gelu as a function": (lambda m, x: F.gelu(m.linear(m.first(x)), approximate="tanh"), {}),
    "another activation": (lambda m, x: F.elu(m.linear(m.first(x))), {}),
    "leaky": (lambda m, x: F.threshold(m.linear(m.first(x)), 0.1, 0.0), {}),
    "a norm with a residual of its own": (lambda m, x: m.own(m.conv(x := m.first(x)), x), {"conv": "conv+norm+add"}),
    "a norm with an act of its own": (lambda m, x: m.own(m.conv(m.first(x)), None, "relu"), {"conv": "conv+norm+relu"}),
    "gelu": (lambda m, x: m.gelu(m.linear(m.first(x))), {"linear": "linear+gelu"}),
    "called twice": (lambda m, x: F.relu(m.conv(m.norm(m.conv(m.first(x))))), {"conv": "conv+relu"}),
    "in place": (lambda m, x: m.conv(m.first(x)).relu_(), {"conv": "conv+relu"}),
    "linear and residual": (lambda m, x: F.relu(m.linear(m.first(x))) + x[:, :1], {"linear": "linear+relu"}),
}


@pytest.mark.parametrize(("forward", "expected"), CASES.values(), ids=CASES)
def test_a_layer_is_called_late_only_where_that_changes_nothing(forward, expected):
    torch.manual_seed(0)
    model = sparse(Case(forward))
    assert chains(model) == expected
    plain = copy.deepcopy(model)
    torch.testing.assert_close(spfde.fuse(model)(images()), plain(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.eval()(images()), plain.eval()(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "act"])
def test_hooks_there_before_keep_the_parts_apart(name):
    model = sparse(Case(lambda m, x: m.act(m.conv(m.first(x)))))
    assert chains(model) == {"conv": "conv+relu"}
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    assert chains(model) == {}


def test_hooks_of_later_still_see_the_layer_and_the_activation():
    model, seen = spfde.fuse(sparse(Case(lambda m, x: m.act(m.conv(m.first(x)))))), []
    for name in ("conv", "act"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model(images())
    assert seen == ["conv", "act"]


def test_one_compilation_holds_the_training_of_sparse_layers():
    torch._dynamo.reset()
    model = spfde.fuse(sparse(built("vgg")))
    expected = copy.deepcopy(model)(images())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), expected)


def test_a_subclass_of_a_sparse_layer_is_left_alone():
    model = sparse(Case(lambda m, x: m.act(m.conv(m.first(x)))))
    model.conv.__class__ = type("Mine", (SparseConv2d,), {})
    assert chains(model) == {}


def test_a_dense_gradient_is_still_shown():
    model, shown = spfde.fuse(sparse(Case(lambda m, x: m.act(m.conv(m.first(x)))))), []
    model.conv._grad_probe = lambda dy, x: shown.append(dy.shape)
    model(images()).sum().backward()
    assert len(shown) == 1
