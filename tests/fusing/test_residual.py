"""Additions to what sparse layers and whole modules return: which are taken in, and that no bit of a result changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusing.networks import images, sparse
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import spfde
from spfde.nn import norm


def chains(model):
    """Of the norms and of the sparse layers, by name."""
    report = spfde.fuse.report(model)
    return {row.name: row.chain for row in (*report.rows, *report.layers)}


def results(model, *inputs):
    """Outputs in training and in evaluation, and the gradients of inputs and parameters in both."""
    found = []
    torch.manual_seed(0)
    for mode in (True, False):
        given = [
            x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
        ]
        wanted = [x for x in (*given, *model.parameters()) if isinstance(x, torch.Tensor) and x.requires_grad]
        y = model.train(mode)(*given)
        found += [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, materialize_grads=True)]
    return found


def same(model, plain, *inputs):
    got, expected = results(model, *inputs), results(plain, *inputs)
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(got, expected, strict=True))


TRANSFORMERS = {
    "vit": (lambda: spfde.models.ViT(16, 2, 2, image_size=12, patch_size=4, num_classes=5), images()),
    "gpt": (lambda: spfde.models.GPT(16, 2, 2, vocab_size=11, context=8, tied=False), torch.arange(14).view(2, 7) % 11),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("make", "x"), TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers_compute_the_same_bits(make, x, recompute):
    torch.manual_seed(0)
    plain = sparse(make())
    model = spfde.fuse(copy.deepcopy(plain), recompute=recompute)
    assert same(model, plain, x)
    assert same(pickle.loads(pickle.dumps(model)), plain, x)
    assert {chain for name, chain in chains(model).items() if name.endswith(("proj", "fc2"))} == {"linear+add"}
    assert not any("forward" in vars(m) for m in spfde.unfuse(model).modules())
    assert same(model, plain, x)


def mobilenet():
    torch.manual_seed(0)
    return spfde.models.MobileNetV2("cifar", 5, width=0.25, dropout=0.0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_mobilenet_computes_the_same_with_its_additions_in_the_norms(monkeypatch, layout, recompute):
    apart = mobilenet().to(memory_format=layout)
    model = spfde.fuse(copy.deepcopy(apart), recompute=recompute)
    with monkeypatch.context() as patch:
        patch.setattr("spfde.fusing.residual.merge", lambda *_: ())
        spfde.fuse(apart, recompute=recompute)
    run, added = norm.norm_act, []
    monkeypatch.setattr(norm, "norm_act", lambda *a, **k: added.append(k["residual"] is not None) or run(*a, **k))
    x = images().contiguous(memory_format=layout)
    model(x)
    assert (len(added), sum(added)) == (52, 11)  # a residual in 11 of 17 blocks
    added.clear()
    apart(x)
    assert (len(added), sum(added)) == (52, 0)
    apart.load_state_dict(model.state_dict())
    assert same(model, apart, x)


def test_what_the_report_says_of_a_mobilenet():
    model = mobilenet()
    report = spfde.fuse.report(model)
    rows = {row.name: row for row in report.rows}
    for i, block in enumerate(model.blocks):
        row = rows[f"blocks.{i}.project.1"]
        assert row.chain == ("norm+add" if block.residual else "norm")
        assert row.reason == "the forward of Sequential ends with it"
    assert str(report).endswith("46 of 52 norms can be fused with what follows them")
    assert spfde.fuse.report(spfde.fuse(model)).rows == tuple(
        type(row)(row.name, row.chain, row.reason, True) for row in report.rows
    )


class Case(nn.Module):
    """Layers, and a forward of the test's."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.first, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(3, 8), nn.LayerNorm(8)
        self.act, self.gelu, self.add = nn.ReLU(), nn.GELU(), Subtract()
        self.body = forward

    def forward(self, x, r):
        return self.body(self, self.first(x), r)


class Subtract(nn.Module):
    """A module whose name is no addition."""

    def forward(self, x, y):
        return x - y


def in_place(m, x, r):
    y = m.a(m.norm(x))
    y += x
    return y


def elsewhere_in_place(m, x, r):
    y = x
    y += m.a(r)
    return x + y


def read_again(m, x, r):
    y = x + m.a(r)
    return y + x.mul_(2)


ADD = {"a": "linear+add"}
CASES = {
    "residual first": (lambda m, x, r: x + m.a(m.norm(x)), ADD),
    "residual last": (lambda m, x, r: m.a(m.norm(x)) + x, ADD),
    "torch.add": (lambda m, x, r: torch.add(x, m.a(m.norm(x))), ADD),
    "method": (lambda m, x, r: m.a(m.norm(x)).add(x), ADD),
    "in place": (in_place, ADD),
    "method in place": (lambda m, x, r: m.a(m.norm(x)).add_(x), ADD),
    "in place elsewhere": (elsewhere_in_place, {}),
    "method in place elsewhere": (lambda m, x, r: (x * 2).add_(m.a(m.norm(x))), {}),
    "its input": (lambda m, x, r: x + m.a(x), ADD),
    "given": (lambda m, x, r: r + m.a(x), ADD),
    "given, in place": (lambda m, x, r: m.a(x).add_(r), ADD),
    "read again": (read_again, ADD),
    "two layers": (lambda m, x, r: m.a(m.norm(x)) + m.b(m.norm(x)), {"b": "linear+add"}),
    "relu": (lambda m, x, r: F.relu(x + m.a(x)), {"a": "linear+add+relu"}),
    "relu in place": (lambda m, x, r: (x + m.a(x)).relu_(), {"a": "linear+add+relu"}),
    "relu6 in place": (lambda m, x, r: F.relu6(m.a(x) + r, inplace=True), {"a": "linear+add+relu6"}),
    "relu, a module": (lambda m, x, r: m.act(x + m.a(x)), {"a": "linear+add+relu"}),
    "gelu": (lambda m, x, r: m.gelu(x + m.a(x)), {"a": "linear+add+gelu"}),
    "another activation": (lambda m, x, r: F.silu(x + m.a(x)), ADD),
    "relu of one of two": (lambda m, x, r: (lambda y: F.relu(y) + y)(x + m.a(x)), ADD),
    "alpha": (lambda m, x, r: torch.add(x, m.a(x), alpha=2), {}),
    "by name": (lambda m, x, r: torch.add(input=x, other=m.a(x)), {}),
    "a number": (lambda m, x, r: m.a(x) + 1.0, {}),
    "itself": (lambda m, x, r: (lambda y: y + y)(m.a(x)), {}),
    "read twice": (lambda m, x, r: (lambda y: (x + y) * y)(m.a(x)), {}),
    "a module of that name": (lambda m, x, r: m.add(x, m.a(x)), {}),
    "called twice": (lambda m, x, r: x + m.a(m.a(x)), ADD),
}  # fmt: skip
GIVEN = {
    "alike": torch.randn(6, 3, 12, 8, generator=torch.Generator().manual_seed(3)),
    "to broadcast": torch.randn(8, generator=torch.Generator().manual_seed(3)),
    "double": torch.randn(6, 3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    "integers": torch.arange(8),
    "a number": 0.5,
}


def case(forward):
    torch.manual_seed(0)
    model = sparse(Case(forward))
    return model, spfde.fuse(copy.deepcopy(model))


@pytest.mark.parametrize(("forward", "expected"), CASES.values(), ids=CASES)
def test_additions_in_one_forward(forward, expected):
    plain, model = case(forward)
    assert chains(plain) == chains(model) == expected
    assert same(model, plain, images()[..., :3], GIVEN["alike"])


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("name", ["given", "given, in place", "relu6 in place"])
def test_whatever_can_be_added(name, given):
    plain, model = case(CASES[name][0])
    assert same(model, plain, images()[..., :3], given)


@pytest.mark.parametrize("name", ["given", "given, in place"])
def test_what_cannot_be_added_raises_as_ever(name):
    for model in case(CASES[name][0]):
        with pytest.raises(TypeError, match="NoneType"):
            model(images()[..., :3], None)
        with pytest.raises(RuntimeError, match="must match the size"):
            model(images()[..., :3], torch.ones(5))


@pytest.mark.parametrize("name", ["a", "act"])
def test_hooks_keep_the_parts_apart(name):
    plain, model = case(CASES["relu, a module"][0])
    seen = []
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    assert same(model, plain, images()[..., :3], 0)
    assert len(seen) == 2
    assert chains(model) == ({} if name == "a" else ADD)


def test_a_layer_whose_input_is_changed_before_the_addition_is_left_alone():
    def changed(m, x, r):
        y = m.a(x)
        x.mul_(2)
        return y + x

    plain, model = case(changed)
    assert chains(model) == {}
    with torch.no_grad():
        assert torch.equal(model(images()[..., :3], 0), plain(images()[..., :3], 0))


class Branch(nn.Sequential):
    """Linear, GELU, and a linear that ends the forward."""

    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


class Outer(nn.Module):
    """Branches in several forms, and a forward of the test's."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.act, self.noise = nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5)
        self.branch, self.nested = Branch(), nn.Sequential(nn.LayerNorm(8), nn.Sequential(nn.LayerNorm(8), Branch()))
        self.norms = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.dropped, self.two, self.optional = nn.Sequential(Branch(), nn.Dropout(0.0)), Two(), Choice()
        self.doubled, self.body = Doubled(), forward

    def forward(self, x):
        return self.body(self, self.first(x))


class Two(nn.Module):
    """A forward of two arguments that ends with an addition of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, y):
        return self.b(x + self.a(y))


class Choice(nn.Module):
    """A forward that is not traced."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x, scale=1):
        return self.a(x * scale)


class Doubled(nn.Module):
    """Changes what it is given."""

    def forward(self, x):
        return x.mul_(2)


def branch_in_place(m, x):
    y = m.branch(x)
    y += x
    return y


def between(m, x):
    y = m.branch(x)
    return y + m.doubled(x * 1)


TAKEN = {"branch.2": "linear+add"}
OUTER = {
    "branch": (lambda m, x: x + m.branch(x), TAKEN),
    "branch in place": (branch_in_place, TAKEN),
    "method in place": (lambda m, x: m.branch(x).add_(x), TAKEN),
    "into the residual": (lambda m, x: (x * 1).add_(m.branch(x)), {}),
    "alpha": (lambda m, x: torch.add(x, m.branch(x), alpha=2), {}),
    "a number": (lambda m, x: m.branch(x) + 1, {}),
    "with keywords": (lambda m, x: x + m.branch(input=x), {}),
    "something between": (between, {}),
    "relu": (lambda m, x: m.act(x + m.branch(x)), TAKEN),
    "nested": (lambda m, x: m.nested(x) + x, {"nested.1.1.2": "linear+add"}),
    "a norm": (lambda m, x: m.norms(x) + x, {"norms.1": "norm+add", "norms.0": "conv+norm+add"}),
    "a norm with and without": (
        lambda m, x: m.norms(m.norms(x) + x), {"norms.1": "norm+add, norm", "norms.0": "conv+norm+add, conv+norm"},
    ),
    "dropout": (lambda m, x: m.dropped(x) + x, {}),
    "two arguments": (lambda m, x: x + m.two(x, x * 2), {"two.b": "linear+add"}),
    "not traced": (lambda m, x: x + m.optional(x), {}),
    "with and without": (lambda m, x: m.branch(m.branch(x) + x), TAKEN),
    "twice": (lambda m, x: (lambda y: y + m.branch(y))(x + m.branch(x)), TAKEN),
    "two branches": (lambda m, x: m.branch(x) + m.nested(x), {"nested.1.1.2": "linear+add"}),
    "random numbers": (lambda m, x: m.noise(m.noise(x) + m.branch(m.noise(x))), TAKEN),
    "to broadcast": (lambda m, x: x[0, 0] + m.branch(x), TAKEN),
    "of another precision": (lambda m, x: x.double() + m.branch(x), TAKEN),
    "of another precision, in place": (lambda m, x: m.branch(x).add_(x.double()), TAKEN),
}  # fmt: skip


def outer(forward):
    """The parts one by one, norms native, and the fused model."""
    torch.manual_seed(0)
    model = sparse(Outer(forward))
    with pytest.MonkeyPatch.context() as patch:
        for way in ("forward", "residual"):
            patch.setattr(f"spfde.fusing.{way}.merge", lambda *_: ())
        apart = spfde.fuse(copy.deepcopy(model))
    return apart, spfde.fuse(model)


def tokens(seed=0):
    return images(seed)[:, :, :6, :3].transpose(1, 2).contiguous()


@pytest.mark.parametrize(("forward", "expected"), OUTER.values(), ids=OUTER)
def test_additions_to_what_a_module_returns(forward, expected):
    apart, model = outer(forward)
    expected = {"two.a": "linear+add", **expected}
    assert {name: chain for name, chain in chains(model).items() if "add" in chain} == expected
    assert chains(spfde.unfuse(copy.deepcopy(model))) == chains(model) == chains(spfde.fuse(copy.deepcopy(model)))
    assert same(model, apart, tokens())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for p in copied.parameters():
                p.mul_(2)
        assert not same(copied, apart, tokens())
        copied.load_state_dict(apart.state_dict())
        model.load_state_dict(apart.state_dict())
        assert same(copied, model, tokens())


def calls_of(model):
    """Names of the branch's parts, called from now on, and what the branch returned."""
    seen = []
    for name in ("branch", "branch.2"):
        model.get_submodule(name).register_forward_hook(lambda *a, name=name: seen.append((name, a[-1].clone())))
    return seen


def test_hooks_of_later_see_what_the_module_returns_without_the_addition():
    apart, model = outer(OUTER["branch"][0])
    seen, expected = calls_of(model), calls_of(apart)
    assert same(model, apart, tokens())
    assert [name for name, _ in seen] == ["branch.2", "branch"] * 2
    assert all(torch.equal(y, z) for (_, y), (_, z) in zip(seen, expected, strict=True))


@pytest.mark.parametrize("hook", [
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
])  # fmt: skip
def test_hooks_there_before_keep_the_addition_apart(hook):
    _, model = outer(OUTER["branch"][0])
    getattr(model.branch, hook)(lambda *_: None)
    assert "branch.2" not in chains(model)


def test_hooks_on_every_module_see_it_too():
    apart, model = outer(OUTER["nested"][0])
    seen = []
    handle = register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        assert same(model, apart, tokens())
    finally:
        handle.remove()
    assert seen.count(model.nested) == seen.count(model.nested[1][1][2]) == 2


REPLACED = {
    "a module": lambda m: setattr(m, "branch", nn.Tanh()),
    "its forward": lambda m: setattr(m.branch, "forward", torch.tanh),
    "its last layer": lambda m: m.branch.__setitem__(2, nn.Tanh()),
    "its compiled call": lambda m: setattr(m.branch, "_compiled_call_impl", torch.tanh),
    "dense": spfde.densify,
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_what_is_replaced_later_is_what_runs(replace):
    apart, model = outer(OUTER["branch"][0])
    before = model(tokens())
    for m in (apart, model):
        replace(m)
    assert same(model, apart, tokens())
    assert not torch.equal(model(tokens()), before)


def test_a_module_that_is_in_two_others():
    torch.manual_seed(0)
    branch = Branch()
    add, call = Outer(OUTER["branch"][0]), Outer(lambda m, x: m.branch(x) * 2)
    add.branch = call.branch = branch
    add.two = call.two = nn.Identity()
    for order in ((add, call), (call, add)):
        plain = sparse(nn.Sequential(*copy.deepcopy(order)))
        plain[1].first = nn.Identity()
        model = spfde.fuse(copy.deepcopy(plain))
        place = 0 if order[0] is call else 1
        assert [name for name, chain in chains(model).items() if "add" in chain] == ["0.branch.2"]
        assert vars(model[0].branch).keys() >= {"forward"}
        assert model[place].branch is model[1 - place].branch
        assert same(model, plain, tokens())


def test_frozen_and_trained_parts():
    apart, model = outer(OUTER["a norm"][0])
    for m in (apart, model):
        spfde.freezing.freeze(m.norms)
        m.train()
    y, expected = (torch.autograd.grad(m(tokens()).square().sum(), m.first.weight)[0] for m in (model, apart))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["nested", "a norm", "branch in place"])
def test_one_compilation_holds_the_additions(name):
    torch._dynamo.reset()
    _, model = outer(OUTER[name][0])
    expected = copy.deepcopy(model)(tokens())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens()), expected)
