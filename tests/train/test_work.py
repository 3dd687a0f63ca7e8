import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spfde
from spfde.freezing import freeze
from spfde.train.flops import gradients, training_flops

EXAMPLE = torch.randn(1, 1, 12, 12)


def counted(model: nn.Module) -> float:
    """FLOPs of one sample's real forward and backward pass, as torch counts them."""
    model.train()
    images = torch.randn(2, 1, 12, 12)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() / len(images)


@pytest.mark.parametrize(
    "frozen", [(), ("conv1", "bn1"), ("conv1", "bn1", "layer1"), ("conv1", "bn1", "layer1", "layer2")]
)
def test_dense_work_is_what_torch_counts_under_a_frozen_prefix(task, frozen):
    model = task.model()
    for name in frozen:
        freeze(model.get_submodule(name))
    assert training_flops(model, EXAMPLE) == counted(model)


def test_a_shortcut_convolution_above_a_frozen_prefix_needs_no_input_gradient():
    model = spfde.models.ResNet(8, 4, in_channels=1, width=0.5, shortcut="B")
    for name in ("conv1", "bn1", "layer1"):
        freeze(model.get_submodule(name))
    counts = gradients(model, ["layer1.0.conv1", "layer2.0.conv1", "layer2.0.shortcut.0", "layer2.0.conv2"], EXAMPLE)
    assert counts == {
        "layer1.0.conv1": 0,
        "layer2.0.conv1": 1,
        "layer2.0.shortcut.0": 1,
        "layer2.0.conv2": 2,
    }
    assert training_flops(model, EXAMPLE) == counted(model)


def test_a_layer_frozen_in_the_middle_passes_the_gradient_on(task):
    model = task.model()
    freeze(model.layer2)
    counts = gradients(model, ["layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv1"], EXAMPLE)
    assert counts == {"layer1.0.conv2": 2, "layer2.0.conv1": 1, "layer3.0.conv1": 2}


def test_sparse_layers_count_what_they_store(task):
    dense, sparse = task.model(), spfde.sparsify(task.model(), 0.75)
    saved = sum(
        2 * 3 * (layer.shape.numel() - layer.nnz) * positions
        for layer, positions in (
            (sparse.get_submodule(f"layer{stage}.0.conv{i}"), {1: 144, 2: 36, 3: 9}[stage])
            for stage in (1, 2, 3)
            for i in (1, 2)
        )
    )
    assert training_flops(dense, EXAMPLE) - training_flops(sparse, EXAMPLE) == saved


def test_counting_leaves_no_trace(task):
    model = spfde.sparsify(task.model(), 0.5).train()
    freeze(model.layer1)
    model.layer3.eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    training_flops(model, EXAMPLE)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in model.modules())
