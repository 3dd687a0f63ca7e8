"""fuse, unfuse and the report on whole networks: same keys, same training, the original back."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from fusing.networks import NETWORKS, built, chains, images
from torch import nn

import spfde
from spfde.nn import FusedNormAct2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_like_the_unfused_model(name, layout):
    apart = []
    for seed in range(3):  # rounding may carry a value across a ReLU's kink, and the runs part: seldom in all of them
        torch.manual_seed(seed)
        plain = NETWORKS[name]().to(memory_format=layout)
        fused = spfde.fuse(copy.deepcopy(plain))
        for model in (plain, fused):
            optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            for step in range(5):
                optimizer.zero_grad()
                logits = model(images(5 * seed + step).contiguous(memory_format=layout))
                F.cross_entropy(logits, torch.arange(6) % 5).backward()
                optimizer.step()
        assert list(fused.state_dict()) == list(plain.state_dict())
        both = [[*m.state_dict().values(), m.eval()(images()).detach()] for m in (fused, plain)]
        apart.append(max(float((p - q).abs().max() / (q.abs().max() + 1e-3)) for p, q in zip(*both, strict=True)))
    assert min(apart) < 2e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_of_one_step(name):
    plain = built(name)
    fused = spfde.fuse(copy.deepcopy(plain))
    outputs = [model(images()) for model in (plain, fused)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for y in outputs:
        y.square().sum().backward()
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()) + 1e-5)
    for p, q in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_unfuse_gives_the_original_back(name):
    plain = built(name)
    before = [(n, type(m), m) for n, m in plain.named_modules()]
    expected = plain(images())
    plain.load_state_dict(built(name).state_dict())
    model = spfde.fuse(plain)
    assert [n for n, _ in model.named_modules()] == [n for n, *_ in before]
    assert spfde.unfuse(model) is plain
    assert [(n, type(m), m) for n, m in plain.named_modules()] == before
    assert not any("forward" in vars(m) for m in plain.modules())
    assert torch.equal(plain(images()), expected)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_is_fused_and_stands_alone(name, copied):
    def through_file(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    ways = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_file}
    model = spfde.fuse(built(name))
    copy_ = ways[copied](model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(copy_(images()), spfde.fuse(built(name))(images()))
    assert chains(copy_) == chains(model)
    torch.testing.assert_close(spfde.unfuse(copy_).eval()(images()), copy_(images()))


def test_fusing_twice_is_fusing_once():
    model = spfde.fuse(built("resnet"))
    once = chains(model)
    assert chains(spfde.fuse(model)) == once
    spfde.unfuse(model)
    assert not any(row.fused for row in spfde.fuse.report(model).rows)


def test_what_is_fused_in_a_resnet():
    expected = {
        "bn1": "norm+relu",
        "layer1.0.bn1": "norm+relu",
        "layer1.0.bn2": "norm+add+relu",
        "layer1.1.bn1": "norm+relu",
        "layer1.1.bn2": "norm+add+relu",
        "layer2.0.bn1": "norm+relu",
        "layer2.0.bn2": "norm+add+relu",
        "layer2.0.downsample.1": "norm",
        "layer2.1.bn1": "norm+relu",
        "layer2.1.bn2": "norm+add+relu",
    }
    model = built("resnet")
    assert chains(model) == expected
    assert not any(isinstance(m, FusedNormAct2d) for m in model.modules())
    report = spfde.fuse.report(spfde.fuse(model))
    assert chains(model) == expected
    assert all(row.fused and bool(row.reason) == (row.chain == "norm") for row in report.rows)
    assert "the forward of Sequential ends with it" in str(report)
    assert str(report).endswith("9 of 10 norms fused with what follows them")


def test_what_is_fused_elsewhere():
    assert set(chains(built("vgg")).values()) == {"norm+relu"}
    assert spfde.fuse.report(built("vgg without norms")).rows == ()
    assert str(spfde.fuse.report(built("vgg without norms"))) == "no normalisation layer, nothing to fuse"
    ends = {"features.1.conv.3": "norm+add", "features.2.conv.3": "norm"}  # the addition is in another module
    assert {name: chain for name, chain in chains(built("mobilenet")).items() if chain != "norm+relu6"} == ends
    kinds = ["norm+relu", "norm+add+relu", "norm+add+relu", "norm+add+relu6", "norm"]
    assert list(chains(built("functional")).values()) == kinds


def test_the_activations_of_a_fused_chain_are_not_run():
    model, ran = spfde.fuse(built("resnet")), []
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda *_: ran.append(1))
    model(images())
    assert ran == []


def test_a_frozen_model_stays_frozen_and_fused():
    model = spfde.freezing.freeze(spfde.fuse(built("resnet")))
    state = copy.deepcopy(model.state_dict())
    y = model.train()(images())
    assert not y.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    other = spfde.fuse(spfde.freezing.freeze(built("resnet")))
    torch.testing.assert_close(other.train()(images()), y)
    assert spfde.freezing.is_frozen(other)
    torch.testing.assert_close(spfde.unfuse(other)(images()), y)


@pytest.mark.parametrize("name", ["resnet", "vgg", "mobilenet", "resnet20"])
def test_freezing_finds_the_same_blocks(name):
    model = built(name)
    names = lambda: [block.name for block in spfde.freezing.blocks(model, images())]  # noqa: E731
    expected = names()
    spfde.fuse(model)
    assert names() == expected


def test_sparse_layers_go_on_being_sparse():
    model = spfde.sparsify(built("resnet"), 0.5)
    expected = copy.deepcopy(model)(images())
    torch.testing.assert_close(spfde.fuse(model)(images()), expected, rtol=1e-4, atol=1e-5)
    dense = spfde.densify(spfde.fuse(spfde.sparsify(spfde.fuse(built("resnet")), 0.5)))
    torch.testing.assert_close(dense(images()), expected, rtol=1e-4, atol=1e-4)


class Changing(nn.Module):
    """A forward that is another one later."""

    def __init__(self):
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(3), True

    def forward(self, x):
        y = self.norm(x)
        return F.relu(y) if self.relu else y


class Untraced(Changing):
    """A forward with an optional argument."""

    def forward(self, x, shift=1.0):
        return self.norm(x) + shift


CHANGES = {
    "an attribute": lambda m: setattr(m, "relu", False), "the class": lambda m: setattr(m, "__class__", Untraced),
    "no norm any more": lambda m: setattr(m, "norm", nn.Tanh()),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fusing_again_leaves_no_forward_of_before(change):
    plain, model = Changing(), spfde.fuse(Changing())
    assert "forward" in vars(model)
    for m in (plain, model):
        change(m)
    assert spfde.fuse(model) is model and "forward" not in vars(model)
    torch.testing.assert_close(model(images()), plain(images()))


def dense_layers(model):
    return [weakref.ref(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_layers_that_are_replaced_after_fusing_are_freed():
    for way in (lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        model = way(spfde.fuse(built("mobilenet")))
        model(images())
        spfde.fuse.report(model)
        layers = dense_layers(model)
        spfde.sparsify(model, distribution={n: 0.5 for n, m in model.named_modules() if type(m) is nn.Conv2d})
        gc.collect()
        assert [layer() for layer in layers if layer() is not None] == [model.classifier[1]]


def test_one_compilation_holds_the_fused_forward():
    torch._dynamo.reset()
    model = spfde.fuse(built("resnet"))
    expected = copy.deepcopy(model)(images())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), expected)
