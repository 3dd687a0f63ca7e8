"""FreezeNet: the chosen weights train, the others keep their initial bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.topology import FreezeNet


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    )


X = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(2))
DATA = dict(data=(X, Y), loss_fn=cross_entropy)
LAYERS = ("0", "4", "6")


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
])  # fmt: skip
def test_only_the_chosen_weights_move(optimizer):
    model = net()
    before = copy.deepcopy(model.state_dict())
    frozen = FreezeNet(model, 0.9, **DATA)
    masks = frozen.masks()
    assert torch.equal(model(X), copy.deepcopy(net())(X))
    steps = optimizer(model.parameters())
    start = None
    for _ in range(10):
        steps.zero_grad()
        loss = cross_entropy(model(X), Y)
        start = start or loss.item()
        loss.backward()
        steps.step()
    assert loss.item() < start
    model.eval()
    outputs = model(X).detach()
    assert frozen.finish() is model
    assert torch.equal(model(X), outputs)
    for name in LAYERS:
        weight = model.get_submodule(name).weight
        moved = weight != before[f"{name}.weight"]
        assert not bool((moved & ~masks[name]).any())
        assert bool(moved[masks[name]].all())
    assert not torch.equal(model[1].weight, before["1.weight"])
    with pytest.raises(ValueError, match="expected a model in training, got a finished one"):
        frozen.finish()


@pytest.mark.parametrize("distribution", ["global", "erk", "uniform"])
@pytest.mark.parametrize("init", ["snip", "grasp", "random"])
def test_the_choice_is_that_of_sparsify(distribution, init):
    given = {} if init == "random" else DATA
    masks = FreezeNet(net(), 0.8, init=init, distribution=distribution, **given).masks()
    spread = {name: 0.8 for name in LAYERS} if distribution == "uniform" else distribution
    sparse = spfde.sparsify(net(), 0.8, init=init, distribution=spread, **given)
    for name in LAYERS:
        assert torch.equal(masks[name], sparse.get_submodule(name).mask())


def test_gradients_are_those_of_the_dense_weight_at_the_places():
    dense, model = net().double(), net().double()
    x = X.double()
    masks = FreezeNet(model, 0.8, data=(x, Y), loss_fn=cross_entropy).masks()
    for m in (dense, model):
        cross_entropy(m(x), Y).backward()
    for name in LAYERS:
        values = model.get_submodule(name).parametrizations.weight.original
        assert values.shape == (int(masks[name].sum()), 1, 1)
        torch.testing.assert_close(values.grad.flatten(), dense.get_submodule(name).weight.grad[masks[name]])


def test_the_model_comes_back_as_it_was():
    model = net()
    cross_entropy(model(X), Y).backward()
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    FreezeNet(model, 0.9, **DATA).finish()
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert type(model[0]) is nn.Conv2d
    cross_entropy(model(X), Y).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


def test_checkpoints_and_copies():
    first, second = net(), net()
    FreezeNet(first, 0.9, **DATA)
    FreezeNet(second, 0.9, **DATA)
    with torch.no_grad():
        first[4].parametrizations.weight.original += 1
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(X), first.eval()(X))
    assert torch.equal(copy.deepcopy(first)(X), first(X))


def test_a_bare_layer_and_a_pattern():
    layer = nn.Linear(8, 6)
    frozen = FreezeNet(layer, 0.5, init="magnitude", distribution="uniform", pattern="channel")
    assert set(frozen.masks()[""].sum(1).tolist()) == {0, 8}
    assert frozen.finish() is layer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(), r"expected data=\(x, y\) for init 'snip', got none"),
        (dict(**DATA, distribution={"0": 0.5}), "expected distribution 'uniform', 'erk' or 'global', got {'0': 0.5}"),
        (dict(**DATA, sparsity=-1), r"expected sparsity in \[0, 1\], got -1"),
        (dict(**DATA, init="random"), "expected no data and no loss_fn for init 'random'"),
        (dict(**DATA, exclude=["7"]), "expected exclude to be one of"),
    ],
)
def test_bad_arguments(options, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        FreezeNet(model, **options)
    assert set(model.state_dict()) == set(net().state_dict())
