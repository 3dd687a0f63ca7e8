"""Values that are not a layer's own, or no longer in the model: refused by name, before anything moves."""

import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import spfde
from spfde.nn import retired
from spfde.topology import RigL, reserve


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 8))


def sparse() -> nn.Sequential:
    return spfde.sparsify(network(), 0.5, distribution="erk")


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("name", ["values", "col"])
def test_no_parametrization_of_what_masks_move(name):
    layer = sparse()[1]
    with pytest.raises(ValueError, match=f"expected '{name}' to stay as it is.*parametrization"):
        parametrize.register_parametrization(layer, name, Twice(), unsafe=True)
    assert layer.values is layer._parameters["values"]
    parametrize.register_parametrization(layer, "bias", Twice())
    layer(torch.randn(2, 12)).sum().backward()


def test_computed_values_are_refused_by_whatever_moves_masks():
    model = sparse()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prune.random_unstructured(model[1], "values", 0.5)
    with pytest.raises(ValueError, match="expected the values of '1' to be its Parameter, got computed"):
        RigL(model, optimizer, total_steps=10)
    with pytest.raises(ValueError, match="expected the values of 'the layer' to be its Parameter"):
        model[1].move_to(model[1].positions())
    with pytest.raises(ValueError, match="expected the values of 'the layer' to be its Parameter"):
        reserve(model[1], model[1].nnz + 1)


def test_layers_that_share_values_are_refused():
    model = spfde.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.5, distribution="erk")
    model[1].values = model[0].values
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="values of its own, got '0' and '1' with the same Parameter"):
        RigL(model, optimizer, total_steps=10)


def test_one_layer_in_two_places_is_one_layer():
    layer = spfde.sparsify(nn.Linear(8, 8), 0.5)
    model = nn.Sequential(layer, layer)
    RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_that_holds_values_is_told_after_densify(make):
    model = sparse()
    optimizer = make(model.parameters(), lr=0.1)
    topology = RigL(model, optimizer, total_steps=10)  # which keeps the sparse layers
    train(model, optimizer)
    spfde.densify(model)
    model(torch.randn(4, 8)).square().sum().backward()
    with pytest.raises(ValueError, match=r"built after spfde.densify.*still holds '0.values', '1.values', '2.values'"):
        optimizer.step()
    del topology
    train(model, make(model.parameters(), lr=0.1))


def test_an_optimizer_that_holds_dense_weights_is_told_after_sparsify():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spfde.sparsify(model, 0.5)
    with pytest.raises(ValueError, match=r"built after spfde.sparsify.*still holds '1.weight'"):
        train(model, optimizer)


def test_a_layer_that_somebody_kept_goes_on_by_itself():
    dense = nn.Linear(8, 8)
    layer = spfde.sparsify(dense, 0.5)
    again = spfde.densify(layer)
    for module in (dense, layer, again):
        train(module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_nothing_is_watched_once_the_parameters_are_gone():
    gc.collect()
    others = set(retired._retired)  # of models that other tests of this process still hold
    spfde.densify(sparse())
    gc.collect()
    assert set(retired._retired) <= others
    assert (retired._hook is None) == (not retired._retired)
