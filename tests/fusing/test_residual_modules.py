"""Additions to what a module returns, made inside of it: which are, and that no bit of a result changes."""

import copy
import pickle

import pytest
import torch
from fusing.comparing import chains, same
from fusing.networks import images, sparse
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import spfde


class Branch(nn.Sequential):
    """Linear, GELU, and a linear that ends the forward."""

    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


class Outer(nn.Module):
    """Branches in several forms, and one of the forwards below."""

    def __init__(self, name):
        super().__init__()
        self.first, self.act, self.noise = nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5)
        self.branch, self.nested = Branch(), nn.Sequential(nn.LayerNorm(8), nn.Sequential(nn.LayerNorm(8), Branch()))
        self.norms = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.dropped, self.two, self.optional = nn.Sequential(Branch(), nn.Dropout(0.0)), Two(), Choice()
        self.doubled, self.named, self.name = Doubled(), Named(), name

    def forward(self, x):
        return OUTER[self.name][0](self, self.first(x))


class Two(nn.Module):
    """A forward of two arguments that ends with an addition of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, y):
        return self.b(x + self.a(y))


class Named(nn.Module):
    """Arguments of the names that come to mind."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, residual, residual_1, Residual, other):
        return self.a(residual * residual_1 + Residual - other)


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
    "without": (lambda m, x: m.branch(x) * 2, {}),
    "with keywords": (lambda m, x: x + m.branch(input=x), {}),
    "something between": (between, {}),
    "relu": (lambda m, x: m.act(x + m.branch(x)), TAKEN),
    "nested": (lambda m, x: m.nested(x) + x, {"nested.1.1.2": "linear+add"}),
    "a norm": (lambda m, x: m.norms(x) + x, {"norms.1": "norm+add", "norms.0": "conv+norm+add"}),
    "a norm with and without": (lambda m, x: m.norms(m.norms(x) + x), {"norms.1": "norm+add, norm"}),
    "dropout": (lambda m, x: m.dropped(x) + x, {}),
    "two arguments": (lambda m, x: x + m.two(x, x * 2), {"two.b": "linear+add"}),
    "an argument called residual": (lambda m, x: x + m.named(x, x * 3, x + 1, x - 2), {"named.a": "linear+add"}),
    "not traced": (lambda m, x: x + m.optional(x), {}),
    "with and without": (lambda m, x: m.branch(m.branch(x) + x), TAKEN),
    "twice": (lambda m, x: (lambda y: y + m.branch(y))(x + m.branch(x)), TAKEN),
    "two branches": (lambda m, x: m.branch(x) + m.nested(x), {"nested.1.1.2": "linear+add"}),
    "random numbers": (lambda m, x: m.noise(m.noise(x) + m.branch(m.noise(x))), TAKEN),
    "to broadcast": (lambda m, x: x[0, 0] + m.branch(x), TAKEN),
    "of another precision": (lambda m, x: x.double() + m.branch(x), TAKEN),
    "of another precision, in place": (lambda m, x: (lambda r: m.branch(x).add_(r))(x.double()), TAKEN),
}  # fmt: skip


def outer(name):
    """The parts one by one, norms native, and the fused model."""
    torch.manual_seed(0)
    model = sparse(Outer(name))
    with pytest.MonkeyPatch.context() as patch:
        for way in ("forward", "residual"):
            patch.setattr(f"spfde.fusing.{way}.merge", lambda *_: ())
        apart = spfde.fuse(copy.deepcopy(model))
    return apart, spfde.fuse(model)


def tokens(seed=0):
    return images(seed)[:, :, :6, :3].transpose(1, 2).contiguous()


@pytest.mark.parametrize("name", OUTER)
def test_additions_to_what_a_module_returns(name):
    apart, model = outer(name)
    expected = {"two.a": "linear+add", **OUTER[name][1]}
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
    apart, model = outer("branch")
    seen, expected = calls_of(model), calls_of(apart)
    assert same(model, apart, tokens())
    assert [name for name, _ in seen] == ["branch.2", "branch"] * 2
    assert all(torch.equal(y, z) for (_, y), (_, z) in zip(seen, expected, strict=True))


@pytest.mark.parametrize("hook", [
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
])  # fmt: skip
def test_hooks_there_before_keep_the_addition_apart(hook):
    _, model = outer("branch")
    getattr(model.branch, hook)(lambda *_: None)
    assert "branch.2" not in chains(model)


def test_hooks_on_every_module_see_it_too():
    apart, model = outer("nested")
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
    apart, model = outer("branch")
    before = model(tokens())
    for m in (apart, model):
        replace(m)
    assert same(model, apart, tokens())
    assert not torch.equal(model(tokens()), before)


def test_a_module_that_is_in_two_others():
    torch.manual_seed(0)
    branch = Branch()
    add, call = Outer("branch"), Outer("without")
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
    apart, model = outer("a norm")
    for m in (apart, model):
        spfde.freezing.freeze(m.norms)
        m.train()
    y, expected = (torch.autograd.grad(m(tokens()).square().sum(), m.first.weight)[0] for m in (model, apart))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["nested", "a norm", "branch in place"])
def test_one_compilation_holds_the_additions(name):
    torch._dynamo.reset()
    _, model = outer(name)
    expected = copy.deepcopy(model)(tokens())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens()), expected)
