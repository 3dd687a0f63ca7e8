"""Weights that two layers share: they stay dense and shared, by name, until who owns the model unties them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.nn import SparseLayer

WORDS, FEATURES = 11, 8


class Language(nn.Module):
    """A head that multiplies by the embedding, before layers that do not: it is not the last nn.Linear."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES)
        self.head = nn.Linear(FEATURES, WORDS)
        self.inner = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Linear(32, FEATURES))
        self.head.weight = self.embedding.weight

    def forward(self, words):
        x = self.embedding(words)
        return self.head(x + self.inner(x))


class Mirrored(nn.Module):
    """An autoencoder whose decoder is its encoder's second layer, and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.coder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.decoder.weight = self.coder.weight

    def forward(self, x):
        return self.last(self.decoder(self.coder(self.first(x)).tanh()).tanh())


def made(kind=Language) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def rows(model) -> dict:
    return {row.name: row for row in spfde.summary(model).rows}


def sparse(model) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_a_tied_head_stays_dense_and_says_so(distribution):
    model = spfde.sparsify(made(), 0.5, distribution=distribution)
    assert sparse(model) == {"inner.0"} | ({"inner.2"} if distribution != "uniform" else set())
    assert model.head.weight is model.embedding.weight
    assert rows(model)["head"].reason == "not converted: tied to embedding" and rows(model)["head"].tied
    again = spfde.densify(copy.deepcopy(model))
    assert again.head.weight is again.embedding.weight and not sparse(again)


def test_two_tied_layers_stay_dense_and_each_names_the_other():
    model = spfde.sparsify(made(Mirrored), 0.5, distribution="erk")
    assert sparse(model) == {"first", "last"} and model.decoder.weight is model.coder.weight
    reasons = {name: rows(model)[name].reason for name in ("coder", "decoder")}
    assert reasons == {"coder": "not converted: tied to decoder", "decoder": "not converted: tied to coder"}


def test_a_subclass_or_a_hooked_head_is_no_obstacle_where_it_is_tied():
    class Head(nn.Linear):
        pass

    model = made()
    model.head = Head(FEATURES, WORDS).double()
    model.head.weight = model.embedding.weight
    model.head.register_forward_hook(lambda *_: None)
    assert sparse(spfde.sparsify(model, 0.5, distribution="erk")) == {"inner.0", "inner.2"}


@pytest.mark.parametrize("kind", [Language, Mirrored])
def test_training_is_that_of_the_masked_dense_copy(kind):
    dense = made(kind)
    model = spfde.sparsify(copy.deepcopy(dense), 0.6, distribution="erk")
    masks = {name: model.get_submodule(name).mask() for name in sparse(model)}
    for name, mask in masks.items():
        dense.get_submodule(name).weight.data.mul_(mask)
    x = torch.randint(WORDS, (5, 4)) if kind is Language else torch.randn(5, 6, dtype=torch.float64)
    targets = torch.randn_like(dense(x))
    for trained in (dense, model):
        optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (trained(x) - targets).square().mean().backward()
            for name in masks if trained is dense else ():
                dense.get_submodule(name).weight.grad.mul_(masks[name])
            optimizer.step()
    torch.testing.assert_close(model(x), dense(x))
    torch.testing.assert_close(spfde.densify(model).state_dict(), dense.state_dict())


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_masks_move_and_the_tie_stays(method):
    model = spfde.sparsify(made(), 0.6, distribution="erk")
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    topology = getattr(spfde.topology, method)(model, optimizer, total_steps=10, every=1)
    words = torch.randint(WORDS, (6, 4))
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(words).flatten(0, 1), words.flatten()).backward()
        optimizer.step()
        assert topology.step()
    assert model.head.weight is model.embedding.weight


def test_a_tied_layer_that_is_asked_for_is_refused_and_converted_once_it_is_untied():
    model, x = made(), torch.randint(WORDS, (5, 4))
    before = model(x)
    asked = {"head": 0.5, "inner.0": 0.5}
    with pytest.raises(ValueError, match=r"got embedding\.weight and head\.weight tied, try layer\.weight = .*without"):
        spfde.sparsify(model, distribution=asked)
    assert not sparse(model)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    spfde.sparsify(model, distribution=asked)
    assert sparse(model) == {"head", "inner.0"}
    model(x).sum().backward()
    assert model.embedding.weight.grad is not None and model.head.values.grad is not None


def test_layers_without_a_weight_are_not_tied_to_layers_without_a_bias():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].weight, model[1].__dict__["weight"] = None, torch.zeros(4, 4)
    with pytest.raises(ValueError, match="'1' with a computed weight"):
        spfde.sparsify(model, 0.5, distribution="erk")


def test_a_model_of_nothing_but_tied_layers_is_led_on():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1 Linear \(tied to 0\), try .*\.clone\(\)\) to untie them$"):
        spfde.sparsify(model, 0.5, distribution="erk")
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    assert sparse(spfde.sparsify(model, 0.5, distribution="erk")) == {"1"}
