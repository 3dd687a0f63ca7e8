"""Additions to what sparse layers return: which are called with them, and that no bit of a result changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusing.comparing import chains, same
from fusing.networks import images, sparse
from torch import nn

import spfde
from spfde.nn import norm

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
