"""fuse, unfuse and the report on whole networks: same keys, same training, the original back."""

import copy
import gc
import io
import pickle
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from fusing import models
from torch import nn

import spfde
from spfde.nn import FusedNormAct2d

ZOO = {
    "resnet20": lambda: spfde.models.build("resnet20", width=0.5),
    "resnet20 with convolved shortcuts": lambda: spfde.models.build("resnet20", width=0.5, shortcut="B"),
}
NETWORKS = models.ALL | ZOO


def built(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


def images(seed=0):
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def chains(model):
    return {row.name: row.chain for row in spfde.fuse.report(model).rows}


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
    assert list(chains(built("mobilenet")).values()) == ["norm+relu6"] * 3 + ["norm"] + ["norm+relu6"] * 2 + ["norm"]
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


def test_sparse_layers_go_on_being_sparse():
    model = spfde.sparsify(built("resnet"), 0.5)
    expected = copy.deepcopy(model)(images())
    torch.testing.assert_close(spfde.fuse(model)(images()), expected, rtol=1e-4, atol=1e-5)
    dense = spfde.densify(spfde.fuse(spfde.sparsify(spfde.fuse(built("resnet")), 0.5)))
    torch.testing.assert_close(dense(images()), expected, rtol=1e-4, atol=1e-4)


def test_one_compilation_holds_the_fused_forward():
    torch._dynamo.reset()
    model = spfde.fuse(built("resnet"))
    expected = copy.deepcopy(model)(images())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), expected)


# ---- recomputing instead of saving ----------------------------------------------------------------------------------


def inputs_alive_after_forward(model):
    """Names of the layers whose input is still in memory when only the loss is held, and the loss."""
    seen = {}
    for name, m in model.named_modules():
        if not list(m.children()):
            hook = lambda _, args, name=name: seen.update({name: weakref.ref(args[0].untyped_storage())})  # noqa: E731
            m.register_forward_pre_hook(hook)
    loss = model(images()).square().sum()
    gc.collect()
    return {name for name, reference in seen.items() if reference() is not None}, loss


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_gives_the_same_bits(name, sparse):
    saving = built(name)
    if sparse:
        spfde.sparsify(saving, 0.5)
        for m in saving.modules():
            if isinstance(m, spfde.nn.SparseLayer):
                m.kernel = "native"
    remaking = spfde.fuse(copy.deepcopy(saving), recompute=True)
    spfde.fuse(saving)
    for model in (saving, pickle.loads(pickle.dumps(remaking)), remaking):
        model(images()).square().sum().backward()
    for p, q in zip(remaking.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_what_is_recomputed_is_not_saved():
    plain = models.VGG(True)
    readers = {"features.3", "features.7"}  # of norm + relu: a pooling and a convolution
    alive, loss = inputs_alive_after_forward(spfde.fuse(copy.deepcopy(plain)))
    assert readers <= alive
    alive, loss = inputs_alive_after_forward(spfde.fuse(plain, recompute=True))
    assert not readers & alive
    loss.backward()


# ---- what must stay as it is ----------------------------------------------------------------------------------------


class Block(nn.Module):
    """conv, norm and a forward given by the test."""

    def __init__(self, norm=None, **attributes):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), norm or nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        vars(self).update(attributes)


class Optional(Block):
    def forward(self, x, mask=None):
        y = self.relu(self.norm(self.conv(x)))
        return y if mask is None else y * mask


class Asks(Block):
    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x[0]
        return self.relu(self.norm(self.conv(x)))


class Branches(Block):
    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        return y if y.sum() > 0 else -y


class Random(Block):
    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        return y if random.random() < 0.5 else 2 * y


class Noise(Block):
    def forward(self, x):
        return self.relu(self.norm(self.conv(x))) + torch.randn(1)


class Counts(Block):
    def forward(self, x):
        self.calls = vars(self).get("calls", 0) + 1
        return self.relu(self.norm(self.conv(x)))


class Silu(Block):
    def forward(self, x):
        return F.silu(self.norm(self.conv(x)))


class TwoUses(Block):
    def forward(self, x):
        y = self.norm(self.conv(x))
        return torch.relu(y) + y


class InPlaceElsewhere(Block):
    """x, which the norm reads too, is what the addition changes."""

    def forward(self, x):
        y = self.conv(x)
        z = y * 2
        z += self.norm(y)
        return self.relu(z) + y


class NotCalled(Block):
    def forward(self, x):
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var)


class MyNorm(nn.BatchNorm2d):
    pass


def hooked(kind):
    block = Plain()
    module = {"norm": block.norm, "relu": block.relu}[kind]
    module.register_forward_hook(lambda *_: None)
    return block


class Plain(Block):
    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))


def patched():
    block = Plain()
    block.forward = lambda x: block.norm(x)
    return block


LEFT = [
    (lambda: Optional(), "norm", "its forward has optional arguments"),
    (lambda: Asks(), "norm", "its forward asks isinstance"),
    (lambda: Branches(), "norm", "torch.fx cannot trace its forward"),
    (lambda: Random(), "norm", "its forward draws random numbers"),
    (lambda: Noise(), "norm", "its forward makes a tensor of its own"),
    (lambda: Counts(), "norm", "its forward sets attributes"),
    (lambda: Silu(), "norm", "followed by silu"),
    (lambda: TwoUses(), "norm", "its output is used in 2 places"),
    (lambda: InPlaceElsewhere(), "norm", "followed by iadd"),
    (lambda: NotCalled(), "norm", "no forward calls it"),
    (lambda: hooked("relu"), "norm", "followed by ReLU with hooks"),
    (patched, "norm", "its forward is replaced on the instance"),
    (lambda: hooked("norm"), "", "it has hooks, which would see the fused output"),
    (lambda: Plain(MyNorm(3)), "", "MyNorm is not nn.BatchNorm2d itself"),
    (lambda: Plain(nn.SyncBatchNorm(3)), "", "SyncBatchNorm is not nn.BatchNorm2d itself"),
]


@pytest.mark.parametrize(("make", "chain", "reason"), LEFT, ids=[reason for *_, reason in LEFT])
def test_what_is_not_fused_says_why_and_works_as_before(make, chain, reason):
    torch.manual_seed(0)
    model = make()
    reference, draws = copy.deepcopy(model), random.getstate()
    (row,) = spfde.fuse.report(model).rows
    assert row.chain == chain
    assert reason in row.reason
    assert random.getstate() == draws
    assert not isinstance(vars(spfde.fuse(model)).get("forward"), spfde.fusing.forward.FusedForward)
    assert "calls" not in vars(model)
    if not isinstance(model.norm, nn.SyncBatchNorm):  # which wants a process group
        answers = []
        for m in (model, reference):
            random.setstate(draws)
            torch.manual_seed(1)
            answers.append(m(torch.ones(2, 3, 4, 4).cumsum(2).requires_grad_()))
        torch.testing.assert_close(*answers)


def test_a_norm_whose_input_has_other_readers_is_not_moved():
    class Moved(Block):
        def forward(self, x):
            y = self.conv(x)
            z = self.norm(y)
            y.mul_(0)
            return self.relu(z + x)

    torch.manual_seed(0)
    model = Moved()
    expected = copy.deepcopy(model)(images()[:, :3])
    (row,) = spfde.fuse.report(model).rows
    assert row.chain == "norm"
    assert row.reason == "its input is also used elsewhere, so the addition stays on its own"
    torch.testing.assert_close(spfde.fuse(model)(images()[:, :3]), expected)


def test_a_norm_called_twice_is_fused_where_it_can_be():
    class Twice(Block):
        def forward(self, x):
            return F.silu(self.norm(self.relu(self.norm(self.conv(x)))))

    torch.manual_seed(0)
    model = Twice()
    reference = copy.deepcopy(model)
    assert chains(model) == {"norm": "norm+relu, norm"}
    torch.testing.assert_close(spfde.fuse(model)(images()), reference(images()))
    torch.testing.assert_close(model.norm.running_var, reference.norm.running_var)
    assert model.norm.num_batches_tracked == 2


@pytest.mark.parametrize("function", [spfde.fuse, spfde.unfuse, spfde.fuse.report])
def test_only_modules(function):
    with pytest.raises(TypeError, match="expected an nn.Module, got int, try the model itself"):
        function(3)
