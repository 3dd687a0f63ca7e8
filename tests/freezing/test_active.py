"""What several places of a model use stays active inside of frozen blocks: tied weights, dropouts, shared parts."""

import pytest
import torch
from torch import nn

from spfde.convert.sparsify import sparsify
from spfde.flops import layer_work
from spfde.freezing import Progressive, blocks, is_frozen
from spfde.models.gpt import GPT
from spfde.train.optimizer import parameter_groups

IDS = torch.arange(14).reshape(2, 7) % 11


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)


class Tied(nn.Module):
    """A language model whose last layer multiplies by the table of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for each in self.layers:
            x = each(x)
        return self.lm_head(x)


def freezer(model: nn.Module, example: torch.Tensor, **options) -> Progressive:
    usual = {"epochs": 10, "interval": 1, "flops_reduction": 0.05}
    return Progressive(model, blocks(model, example), **{**usual, **options})


@pytest.mark.parametrize("sparse", [False, True])
def test_a_tied_table_stays_active_and_the_layers_freeze(sparse):
    model = sparsify(Tied(), 0.5, example_input=IDS, exclude=["lm_head"]) if sparse else Tied()
    plan = freezer(model, IDS)
    assert [block.name for block in plan.blocks] == ["layers.0", "layers.1", "layers.2"]
    plan.begin_epoch(9)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(IDS).square().mean().backward()
    optimizer.step()
    same = {name for name, p in model.named_parameters() if torch.equal(before[name], p)}
    assert same == {name for name in before if name.startswith(("layers.0.", "layers.1."))}
    assert plan.blocks[0].is_frozen and not plan.blocks[2].is_frozen and model.embed.training
    plan.blocks[0].unfreeze()
    assert all(p.requires_grad for p in model.layers[0].parameters()) and not plan.blocks[0].is_frozen


def test_layers_behind_an_active_part_are_credited_with_their_weight_gradient():
    model = Tied()
    found = blocks(model, IDS)
    work = layer_work(model, IDS)
    assert all(block.credit == block.forward and block.backward > block.credit > 0 for block in found)
    model.lm_head.weight = nn.Parameter(model.embed.weight.detach().clone())
    assert [b.credit for b in blocks(model, IDS)] == [
        sum(w.backward for name, w in work.items() if name.startswith(f"layers.{i}.")) for i in range(3)
    ]


def test_the_library_s_own_tied_language_model():
    model = GPT(dim=8, depth=3, heads=2, vocab_size=11, context=8)
    plan = freezer(model, IDS)
    plan.begin_epoch(9)
    assert len(plan.blocks) == 3 and model.token.weight.requires_grad and not model.position.requires_grad


def test_learning_rates_end_early_only_for_what_freezes():
    model = Tied()
    plan = freezer(model, IDS)
    groups = parameter_groups(model, plan.blocks, plan.horizons)
    assert any(p is model.embed.weight for p in groups[-1]["params"]) and groups[-1]["horizon"] == 1.0
    counted = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in counted}) == len(counted) == len(list(model.parameters()))


class T5Stack(nn.Module):
    """One dropout in front of the layers and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.dropout, self.head = nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.block = nn.ModuleList(layer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed(x))
        for each in self.block:
            x = each(x)
        return self.head(self.dropout(x))


def test_a_dropout_of_two_places_is_no_block_s_and_goes_on_dropping():
    model = T5Stack()
    plan = freezer(model, torch.randn(2, 5, 3))
    assert [name for name, _ in plan.blocks[0].modules] == ["embed", "block.0"]
    plan.begin_epoch(9)
    model.train()
    assert model.dropout.training and is_frozen(model.embed) and is_frozen(model.block[0])


def test_one_dropout_for_a_whole_chain():
    drop = nn.Dropout()
    model = nn.Sequential(nn.Linear(3, 4), drop, nn.Linear(4, 4), drop, nn.Linear(4, 2))
    assert [[name for name, _ in b.modules] for b in blocks(model, torch.randn(2, 3))] == [["0"], ["2"]]


class CalledToo(nn.Module):
    """The norm of the first layer is also called by itself, behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.norm, self.head = self.layers[0].norm1, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.layers:
            x = each(x)
        return self.head(self.norm(x))


def test_a_part_of_a_block_that_is_also_called_by_itself_stays_active():
    model = CalledToo()
    plan = freezer(model, torch.randn(2, 5, 8))
    plan.begin_epoch(9)
    model.train()
    still = {name for name, p in model.layers[0].named_parameters() if p.requires_grad}
    assert still == {"norm1.weight", "norm1.bias"} and model.norm.training and plan.blocks[0].is_frozen
    assert all(block.credit < block.backward for block in plan.blocks[1:])


class TwoStacks(nn.Module):
    """One table for an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.encoder = nn.ModuleList(layer() for _ in range(2))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, 0.1, batch_first=True) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        memory, x = self.table(ids), None
        for each in self.encoder:
            memory = each(memory)
        x = self.table(ids)
        for each in self.decoder:
            x = each(x, memory)
        return self.head(x)


def test_a_table_of_two_stacks_stays_active():
    model = TwoStacks()
    plan = freezer(model, IDS)
    assert [b.name for b in plan.blocks] == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    plan.begin_epoch(9)
    assert model.table.weight.requires_grad and not any(p.requires_grad for p in model.encoder.parameters())


def test_a_layer_tied_to_another_block_starts_none():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    found = blocks(model, torch.randn(2, 4))
    assert [b.name for b in found] == ["4"] and not {model[0], model[2]} & set(found[0].members)
