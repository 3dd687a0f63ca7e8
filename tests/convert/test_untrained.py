"""What is not trained is not thinned, and what is frozen is so before and after."""

import copy
import pickle

import pytest
import torch
from torch import nn

import spfde
from spfde.freezing import freeze, is_frozen, unfreeze
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 16),
        nn.Linear(16, 4),
    )  # fmt: skip


def sparse(model) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_fixed_weights_stay_as_they_are_whatever_distributes(distribution):
    model = net()
    fixed = model[2].weight.requires_grad_(False)
    before = fixed.clone()
    spfde.sparsify(model, 0.5, distribution=distribution)
    assert sparse(model) == {"4", "5"} | (set() if distribution == "uniform" else {"0", "6"})
    assert model[2].weight is fixed and torch.equal(fixed, before)
    rows = {row.name: row for row in spfde.summary(model).rows}
    assert rows["2"].reason == "not converted: its weight is not trained" and not rows["2"].converted
    fixed.requires_grad_()
    (row,) = [row for row in spfde.summary(model).rows if row.name == "2"]
    assert row.reason == "not converted: its weight was not trained when spfde.sparsify ran"


def test_a_subclass_or_a_hooked_layer_that_is_not_trained_is_no_reason_to_refuse():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Own(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].register_forward_hook(lambda *_: None)
    for i in (1, 2):
        model[i].weight.requires_grad_(False)
    assert sparse(spfde.sparsify(model, 0.5)) == {"3"}


class LoRA(nn.Linear):
    """An adapter as bare Parameters of a subclass."""

    def __init__(self, features, rank):
        super().__init__(features, features)
        self.weight.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(rank, features)), nn.Parameter(torch.zeros(features, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.t() @ self.lora_B.t()


class Adapted(nn.Module):
    """An adapter as layers beside a fixed one."""

    def __init__(self, features, rank):
        super().__init__()
        self.base = nn.Linear(features, features).requires_grad_(False)
        self.a, self.b = nn.Linear(features, rank, bias=False), nn.Linear(rank, features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def test_adapters_become_sparse_beside_what_they_adapt():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16).requires_grad_(False), Adapted(16, 8), LoRA(16, 4), nn.Linear(16, 2))
    x = torch.randn(3, 16)
    base = model[1].base(x)
    spfde.sparsify(model, 0.5)
    assert sparse(model) == {"1.a", "1.b"}
    assert torch.equal(model[1].base(x), base)
    names = [row.name for row in spfde.summary(model).rows]
    assert names == ["0", "1.base", "1.a", "1.b", "2", "2.lora_A", "2.lora_B", "3"]
    model(x).sum().backward()
    assert all(model[1].get_submodule(name).values.grad is not None for name in "ab")


def test_a_frozen_backbone_with_a_new_head_converts_the_head_alone():
    model = nn.Sequential(freeze(net()), nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    spfde.sparsify(model, 0.5)
    assert sparse(model) == {"1", "2"} and is_frozen(model[0])


def test_inits_that_run_the_model_leave_fixed_weights_alone():
    model = net()
    model[4].weight.requires_grad_(False)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))
    spfde.sparsify(model, 0.5, distribution="global", init="snip", data=(x, y), loss_fn=nn.functional.cross_entropy)
    assert sparse(model) == {"0", "2", "5", "6"}
    assert not model[4].weight.requires_grad


def test_frozen_layers_stay_dense_marked_and_can_be_unfrozen():
    model = net()
    freeze(model[2])
    spfde.sparsify(model, 0.5, distribution="erk")
    assert sparse(model) == {"0", "4", "5", "6"}
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.train()
        assert is_frozen(copied[2]) and not copied[2].training
        unfreeze(copied)
        assert all(p.requires_grad for p in copied.parameters()) and copied[2].training


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(4, 4, 3)])
def test_densify_keeps_what_is_frozen_constant_until_it_is_unfrozen(layer, bare):
    model = spfde.sparsify(copy.deepcopy(layer), 0.5)
    model = model if bare else nn.Sequential(model)
    freeze(model)
    dense = spfde.densify(model)
    inner = dense if bare else dense[0]
    assert type(inner) is type(layer)
    for copied in (copy.deepcopy(dense), pickle.loads(pickle.dumps(dense)), dense):
        copied.train()
        inner = copied if bare else copied[0]
        assert is_frozen(copied) and not inner.training
        assert unfreeze(copied) is copied
        assert inner.weight.requires_grad and inner.bias.requires_grad and inner.training
        assert "train" not in inner.__dict__


def test_what_was_fixed_before_it_was_frozen_is_fixed_after():
    model = spfde.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, distribution="erk")
    model[0].values.requires_grad_(False)
    freeze(model)
    unfreeze(spfde.densify(model))
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad


def test_a_kind_of_another_package_is_frozen_after_densify_whatever_its_to_dense_does():
    class Forgetful(SparseLinear):
        def to_dense(self):
            return Dense(self.dense_weight())

    class Dense(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight)

    spfde.convert.register(Dense, Forgetful)
    try:
        model = nn.Sequential(Forgetful(4, 4, 0.5))
        freeze(model)
        spfde.densify(model)
        assert is_frozen(model) and not model[0].training
        unfreeze(model)
        assert model[0].weight.requires_grad
    finally:
        spfde.convert.unregister(Dense)


def test_a_ticket_is_pruned_in_the_same_layers_in_every_round_though_training_froze_some():
    def train(model, first, last):
        freeze(model[2])

    lottery = spfde.topology.Lottery(net(), train, sparsity=0.75, rounds=2, epochs=2)
    lottery.run()
    assert sparse(lottery.model) == {"0", "2", "4", "5", "6"}
    assert is_frozen(lottery.model[2])
    assert isinstance(lottery.model[2], SparseConv2d)
    unfreeze(lottery.model)
    assert lottery.model[2].values.requires_grad


def test_masks_over_fixed_weights_take_fixed_weights():
    model = net().requires_grad_(False)
    masks = spfde.topology.Piggyback(model)
    assert set(masks.masks()) == {"0", "2", "4", "5", "6"}
