"""The bytes of a training step, against what can be counted by hand."""

import pytest
import torch
from profiling.models import images, loss_fn, sparse_block
from torch import nn

import spfde
from spfde.profiling.memory import Allocation, highest, kept_by_layer, size_of


def test_a_chain_of_linear_layers_to_the_byte():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Tanh(), nn.Linear(64, 16, bias=False))
    x, weights = torch.randn(8, 32), 4 * (32 * 64 + 64 * 16)
    found = spfde.memory(model, x, loss_fn=torch.sum)
    assert (found.weights, found.gradients, found.optimizer, found.index) == (weights, weights, weights, 0)
    assert found.batch == 4 * 8 * 32
    # Linear's output is nobody's after tanh, whose own output is saved; the last output dies with the loss.
    assert dict(found.layers) == {"1": 4 * 8 * 64, "": 4}
    assert found.kept == 4 * 8 * 64 + 4
    held = found.weights + found.optimizer + found.batch + found.kept
    assert held + weights <= found.peak <= held + weights + 4 * 8 * (64 * 2 + 16) + 64


def test_adam_has_two_moments():
    model = nn.Linear(32, 64)
    found = spfde.memory(model, torch.randn(8, 32), optimizer=torch.optim.AdamW(model.parameters()))
    assert found.optimizer == 2 * found.weights + 2 * 4  # and a step count for each of the two parameters


def test_a_sparse_layer_costs_its_stored_weights_and_index():
    layer = spfde.sparsify(nn.Linear(64, 64, bias=False), 0.75)
    found = spfde.memory(layer, torch.randn(8, 64))
    assert found.weights == found.gradients == found.optimizer == 4 * layer.nnz
    canonical = 12 * layer.nnz + 2 * 4 * 65  # column, transposed column and permutation; two row pointers
    order = 6 * layer.nnz + 4 * 64 + 4 * 2  # offset and slot of each weight, visits of a panel, where panels start
    assert found.index == canonical + 2 * order


@pytest.mark.parametrize("fused", [False, True])
def test_a_layer_saves_nothing_that_another_holds(fused):
    """In bytes of one activation [4, 8, 8, 8]: each is kept once, whoever saves it."""
    model = spfde.fuse(sparse_block(), recompute=False) if fused else sparse_block()
    one, layers = 4 * 4 * 8 * 8 * 8, dict(spfde.memory(model, images(), loss_fn).layers)
    assert layers["stem"] == layers["conv"] == one  # input of conv; input of bn
    assert layers["bn"] <= 1024  # vectors: what follows saves its own output, not its input
    assert layers.get("relu", 0) == (0 if fused else one)  # fused, x tells the ReLU's mask
    assert one <= layers[""] <= one + 1024  # output of F.relu


def test_recomputing_keeps_one_tensor_of_a_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
    )  # fmt: skip

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            for layer in self.body:
                x = layer(x)
            return x

    spfde.sparsify(model, 0.5, distribution="erk")
    kept = {}
    for recompute in (False, True):
        module = spfde.fuse(spfde.unfuse(Called()), recompute=recompute)
        kept[recompute] = spfde.memory(module, images()).layers
    one = 4 * 4 * 8 * 8 * 8
    assert kept[False]["body.1"] >= one and kept[False]["body.4"] >= one
    assert kept[True].get("body.1", 0) <= 1024 and kept[True].get("body.4", 0) <= 1024
    assert kept[False]["body.3"] == kept[True]["body.3"] == one


def test_storages_count_once():
    x = torch.zeros(10)
    assert size_of([x, x[2:], {"again": (x.view(5, 2),)}, None, "text"]) == 40
    assert size_of([x, x.clone()]) == 80


def change(address, size, phase="forward", layer="a"):
    return Allocation(address, size, phase, layer)


def test_the_highest_moment_counts():
    assert highest([]) == 0
    assert highest([change(1, 5), change(2, 7), change(1, -5), change(1, 4), change(2, -7)]) == 12
    assert highest([change(9, -100), change(1, 5)]) == 5  # given back, but taken before the record


def test_kept_is_what_is_left_when_the_backward_begins():
    changes = [
        change(0, 3, "optimizer", ""),
        change(1, 5),
        change(2, 7, layer="b"),
        change(1, -5),
        change(3, 1, "loss", ""),
        change(2, -7, "backward", ""),
        change(4, 9, "backward", ""),
    ]
    assert kept_by_layer(changes) == {"b": 7, "": 4}
