"""sparsify with inits that run the model: exact counts, nothing left behind, clear errors."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.models.gpt import GPT
from spfde.nn import SparseLayer
from spfde.topology import FORCE, SNIP, GraSP, SynFlow

NAMES = ("snip", "grasp", "synflow", "force", "iter-snip")
QUICK = {"synflow": SynFlow(rounds=3), "force": FORCE(rounds=2), "iter-snip": FORCE(rounds=2, revive=False)}


def quick(name):
    return QUICK.get(name, name)


def net(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 20),
        nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 9, 9, generator=generator), torch.randint(0, 5, (n,), generator=generator)


def sizes(model) -> dict[str, int]:
    return {name: m.nnz for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def masks(model) -> dict[str, torch.Tensor]:
    return {name: m.mask() for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def same_bits(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_names_stand_for_the_methods(name):
    given = {
        "snip": SNIP(),
        "grasp": GraSP(),
        "synflow": SynFlow(100),
        "force": FORCE(10),
        "iter-snip": FORCE(10, False),
    }
    by_name, by_value = (
        spfde.sparsify(net(), 0.9, distribution="global", init=init, data=batch(), loss_fn=cross_entropy)
        for init in (name, given[name])
    )
    same_bits(masks(by_name), masks(by_value))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.99, 1.0])
def test_counts_are_exact_globally_and_per_layer(name, sparsity):
    options = dict(init=quick(name), data=batch(), loss_fn=cross_entropy)
    shapes = {"0": 216, "3": 864, "9": 960, "11": 100}
    total = round((1 - sparsity) * 2140)
    assert sum(sizes(spfde.sparsify(net(), sparsity, distribution="global", **options)).values()) == total
    uniform = sizes(spfde.sparsify(net(), sparsity, **options))
    assert uniform == {n: max(round((1 - sparsity) * shapes[n]), int(sparsity < 1)) for n in ("3", "9")}
    erk = sizes(spfde.sparsify(net(), sparsity, distribution="erk", **options))
    assert erk == sizes(spfde.sparsify(net(), sparsity, distribution="erk"))
    named = sizes(spfde.sparsify(net(), distribution={"0": sparsity, "11": 0.5}, **options))
    assert named == {"0": max(round((1 - sparsity) * 216), int(sparsity < 1)), "11": 50}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["block:4x1", "2:4", "fan-in", "channel"])
def test_patterns_are_kept(name, pattern):
    sparsity = 0.5 if pattern == "2:4" else 0.75
    model = spfde.sparsify(
        net(), sparsity, pattern=pattern, init=quick(name), data=batch(), loss_fn=cross_entropy, distribution="uniform"
    )
    counts = {"block:4x1": (54, 60), "2:4": (432, 480), "fan-in": (216, 240), "channel": (3, 5)}[pattern]
    assert sizes(model) == {"3": counts[0], "9": counts[1]}
    if pattern == "fan-in":
        assert set(model[3].mask().sum((1, 2, 3)).tolist()) == {18}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_trace(name, training, monkeypatch):
    model = net().train(training)
    model[1].eval()
    spfde.freezing.freeze(model[0])
    x, y = batch()
    cross_entropy(model(x), y).backward()
    model[9].weight.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append("user's own"))
    before = copy.deepcopy(model)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    grads = {key: p.grad if p.grad is None else p.grad.clone() for key, p in model.named_parameters()}
    objects = {key: (id(p), id(p.grad)) for key, p in model.named_parameters()}
    buffers = {key: (id(b), b._version) for key, b in model.named_buffers()}
    versions = {key: p._version for key, p in model.named_parameters()}
    torch.manual_seed(7)
    rng = torch.get_rng_state()
    # Score, but do not convert.
    monkeypatch.setattr(sys.modules["spfde.convert.sparsify"], "store", lambda model, *_: model)
    out = spfde.sparsify(model, 0.9, distribution="erk", init=quick(name), data=(x, y), loss_fn=cross_entropy)
    assert out is model
    assert calls  # it did run the model
    assert torch.equal(torch.get_rng_state(), rng)
    same_bits(dict(model.state_dict()), kept)
    assert {key: (id(p), id(p.grad)) for key, p in model.named_parameters()} == objects
    assert {key: p._version for key, p in model.named_parameters()} == versions
    assert {key: (id(b), b._version) for key, b in model.named_buffers()} == buffers
    for key, p in model.named_parameters():
        assert (p.grad is None) == (grads[key] is None)
        assert p.grad is None or torch.equal(p.grad, grads[key])
    for (name, module), (_, old) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert module.training == old.training, name
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in old.parameters()]
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert len(getattr(module, hooks)) == len(getattr(old, hooks)), name
    assert spfde.freezing.is_frozen(model[0])


def test_a_failing_loss_leaves_the_model_as_it_was():
    model = net()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(7)
    rng = torch.get_rng_state()

    def broken(output, y):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        spfde.sparsify(model, 0.9, init=SNIP(training=False), data=batch(), loss_fn=broken)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    same_bits(dict(model.state_dict()), kept)
    assert sizes(model) == {}


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_outputs_outside_the_mask_are_those_of_the_dense_model(name):
    dense = net()
    weight = dense[3].weight.detach().clone()
    model = spfde.sparsify(dense, 0.9, init=quick(name), data=batch(), loss_fn=cross_entropy)
    assert torch.equal(model[3].dense_weight(), weight * model[3].mask())


def test_the_seed_alone_decides_over_dropout():
    def chosen(seed, global_seed):
        model = net()
        torch.manual_seed(global_seed)
        return masks(spfde.sparsify(model, 0.9, init="grasp", seed=seed, data=batch(), loss_fn=cross_entropy))

    same_bits(chosen(1, 5), chosen(1, 6))
    assert not torch.equal(chosen(1, 5)["9"], chosen(2, 5)["9"])


def test_gradients_may_be_off_and_other_parameters_fixed():
    options = dict(init="snip", data=batch(), loss_fn=cross_entropy)
    wanted = masks(spfde.sparsify(net(), 0.9, **options))
    model = net()
    fixed = [p.requires_grad_(False) for p in model.parameters() if p.dim() == 1]
    with torch.no_grad():
        spfde.sparsify(model, 0.9, **options)
    same_bits(masks(model), wanted)
    assert not any(p.requires_grad for p in fixed)
    with pytest.raises(ValueError, match=r"its weight is not trained.* try requires_grad_\(\)"):
        spfde.sparsify(net().requires_grad_(False), 0.9, **options)


@pytest.mark.parametrize(
    "loss_fn", [cross_entropy, nn.MultiMarginLoss(), lambda out, y: (out[:, 0] - y).square().mean()]
)
def test_any_loss(loss_fn):
    model = spfde.sparsify(net(), 0.9, init="snip", data=batch(), loss_fn=loss_fn)
    assert sizes(model) == {"3": 86, "9": 96}


def test_data_forms_are_the_same():
    x, y = batch()
    options = dict(sparsity=0.9, init="snip", loss_fn=cross_entropy)
    wanted = masks(spfde.sparsify(net(), data=(x, y), **options))
    for data in ([x, y], [(x, y)], [[x, y]], ((x,), y)):
        same_bits(masks(spfde.sparsify(net(), data=data, **options)), wanted)


def test_synflow_takes_its_shape_from_data_or_an_example():
    x, y = batch()
    forms = (dict(data=(x, y), loss_fn=cross_entropy), dict(data=(x, None)), dict(example_input=x))
    first, *others = (masks(spfde.sparsify(net(), 0.9, init=SynFlow(4), **form)) for form in forms)
    for other in others:
        same_bits(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_layer(name):
    layer = nn.Linear(7, 5)
    data = torch.randn(4, 7), torch.randint(0, 5, (4,))
    sparse = spfde.sparsify(layer, 0.6, init=quick(name), data=data, loss_fn=cross_entropy)
    assert sparse.nnz == 14
    assert torch.equal(sparse.dense_weight(), layer.weight.detach() * sparse.mask())


@pytest.mark.parametrize("name", NAMES)
def test_attention_and_tokens(name):
    tokens, wanted = torch.randint(0, 16, (2, 8)), torch.randint(0, 16, (2, 8))
    loss_fn = lambda output, y: cross_entropy(output.flatten(0, 1), y.flatten())  # noqa: E731
    gpt = [GPT(dim=16, depth=1, heads=2, vocab_size=16, context=8) for _ in range(2)]  # head tied to the embedding
    options = dict(sparsity=0.8, distribution="erk")
    by_data = spfde.sparsify(gpt[0], **options, init=quick(name), data=(tokens, wanted), loss_fn=loss_fn)
    assert sizes(by_data) == sizes(spfde.sparsify(gpt[1], **options))


def test_a_shared_layer_is_scored_over_all_its_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(4, 4)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model = Twice()
    x, y = torch.randn(5, 4), torch.randint(0, 4, (5,))
    (gradient,) = torch.autograd.grad(cross_entropy(model(x), y), model.a.weight)
    score = (model.a.weight * gradient).abs().flatten()
    sparse = spfde.sparsify(model, 0.75, distribution="erk", init="snip", data=(x, y), loss_fn=cross_entropy)
    assert sparse.a is sparse.b
    assert set(sparse.a.positions().tolist()) == set(score.topk(4).indices.tolist())


def test_scores_of_ones_own():
    scores = {"0": torch.rand(8, 3, 3, 3), "9": torch.rand(20, 48)}
    model = spfde.sparsify(net(), distribution={"0": 0.5, "9": 0.9}, init=scores)
    assert float(scores["9"][model[9].mask()].min()) > float(scores["9"][~model[9].mask()].max())
    assert sizes(model) == {"0": 108, "9": 96}


X, Y = batch()
NAN = {"3": torch.full((12, 8, 3, 3), torch.nan), "9": torch.rand(20, 48)}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(init="snip", loss_fn=cross_entropy), "data.*'snip'"),
        (dict(init="grasp", data=(X, Y)), "loss_fn.*'grasp'"),
        (dict(init="force", data=(X, Y), loss_fn=3), "loss_fn to be callable"),
        (dict(init="snip", data=X, loss_fn=cross_entropy), "data.*Tensor"),
        (dict(init="snip", data=(X, Y, X), loss_fn=cross_entropy), "data.*3 of them"),
        (dict(init="snip", data=[], loss_fn=cross_entropy), "data.*0 of them"),
        (dict(init="synflow"), "data.*'synflow'"),
        (dict(init="synflow", data=X), "data.*Tensor"),
        (dict(init="synfow"), "init to be one of.*try 'synflow'"),
        (dict(init=SNIP), "init.*class"),
        (dict(init=3), "init.*got 3"),
        (dict(init="magnitude", data=(X, Y)), "no data.*'magnitude'"),
        (dict(init={"3": X}, loss_fn=cross_entropy), "no loss_fn for given scores"),
        (dict(init={"4": X}), "layer in init.*'4'"),
        (dict(init={"3": X}), "scores.*'3', got .6, 3, 9, 9"),
        (dict(init={"9": NAN["9"]}), "scores.*'3', got none"),
        (dict(init=NAN), "scores.*'3', got NaN"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: o), "loss_fn.*scalar"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: 3.0), "loss_fn.*float"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: o.detach().sum()), "loss that depends"),
        (dict(init="grasp", data=(X, Y), loss_fn=lambda o, y: o.sum() / 0), "finite scores"),
    ],
)
def test_what_is_wrong_is_named_and_leaves_the_model_alone(options, named):
    model = net()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        spfde.sparsify(model, 0.9, **options)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert sizes(model) == {}


@pytest.mark.parametrize(
    ("make", "named"),
    [(lambda: GraSP(temperature=0), "temperature"), (lambda: SynFlow(rounds=0), "rounds"),
     (lambda: FORCE(rounds=0), "rounds")],
)  # fmt: skip
def test_methods_check_their_options(make, named):
    with pytest.raises(ValueError, match=f"expected .*{named}"):
        make()


def test_outputs_that_are_no_tensor():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.layer(x)}

    data = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    loss_fn = lambda output, y: cross_entropy(output["logits"], y)  # noqa: E731
    assert sizes(spfde.sparsify(Pair(), 0.5, distribution="erk", init="snip", data=data, loss_fn=loss_fn)) == {
        "layer": 3
    }
    for init in ("grasp", "synflow"):
        with pytest.raises(ValueError, match=f"expected the model to return a tensor for init '{init}', got dict"):
            spfde.sparsify(Pair(), 0.5, distribution="erk", init=init, data=data, loss_fn=loss_fn)
    off = GraSP(temperature=1)
    assert sizes(spfde.sparsify(Pair(), 0.5, distribution="erk", init=off, data=data, loss_fn=loss_fn)) == {"layer": 3}
