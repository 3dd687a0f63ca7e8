"""The residual networks: the paper's sizes, shapes, shortcuts, names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spfde import models
from spfde.models import BasicBlock, ResNet


@pytest.mark.parametrize(
    ("name", "millions"),  # He et al. 2015, table 6
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_parameter_counts_are_the_papers(name, millions):
    count = sum(p.numel() for p in models.create(name).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions == 1.7 else 0.005)


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_depth_counts_the_weighted_layers(depth):
    weighted = [m for m in ResNet(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


def test_shortcut_b_adds_two_projections():
    projections = [m for m in ResNet(20, shortcut="B").modules() if getattr(m, "kernel_size", None) == (1, 1)]
    assert [m.out_channels for m in projections] == [32, 64]
    assert all(m.stride == (2, 2) and m.bias is None for m in projections)


@settings(max_examples=15, deadline=None)
@given(
    width=st.sampled_from([0.25, 0.3, 1.0, 2.0]),
    shortcut=st.sampled_from("AB"),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(1, 12),
    size=st.integers(5, 17),
    batch=st.integers(1, 2),
)
def test_any_image_gives_logits_and_gradients_everywhere(width, shortcut, channels, classes, size, batch):
    net = ResNet(8, classes, channels, width, shortcut)
    logits = net(torch.randn(batch, channels, size, size))
    assert logits.shape == (batch, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_stages_have_the_papers_channels_and_sizes():
    net = models.create("resnet20", width=2)
    x = net.relu(net.bn1(net.conv1(torch.randn(1, 3, 32, 32))))
    assert x.shape == (1, 32, 32, 32)
    shapes = [(1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]
    for stage, shape in zip((net.layer1, net.layer2, net.layer3), shapes, strict=True):
        assert len(stage) == 3
        assert all(isinstance(block, BasicBlock) for block in stage)
        x = stage(x)
        assert x.shape == shape


def test_the_padding_shortcut_subsamples_and_adds_zero_channels():
    block = BasicBlock(4, 7, stride=2, shortcut="A")
    x = torch.randn(2, 4, 5, 6)
    y = block.shortcut(x)
    assert y.shape == block.conv1(x).shape == (2, 7, 3, 3)
    assert torch.equal(y[:, 1:5], x[:, :, ::2, ::2])
    assert not y[:, :1].any()
    assert not y[:, 5:].any()
    assert not list(block.shortcut.parameters())


def test_a_block_adds_its_input():
    block = BasicBlock(3, 3, stride=1, shortcut="A").eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), x.relu())


def test_weights_start_with_he_variance():
    torch.manual_seed(0)
    weight = models.create("resnet20").layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_the_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(models.create("resnet20", in_channels=1).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_names_and_values_are_refused():
    with pytest.raises(ValueError, match=r"a model to be one of .*, got 'resnet-20', try 'resnet20'"):
        models.create("resnet-20")
    with pytest.raises(ValueError, match=r"an option of 'resnet20'.*got 'widht', try 'width'"):
        models.create("resnet20", widht=2)
    with pytest.raises(ValueError, match=r"an option of 'resnet20'.*got 'depth'"):
        models.create("resnet20", depth=32)
    with pytest.raises(ValueError, match=r"expected a depth of 6n \+ 2 with n >= 1, got 18"):
        ResNet(18)
    with pytest.raises(ValueError, match=r"got 2, try 20"):
        ResNet(2)
    with pytest.raises(ValueError, match=r"expected num_classes >= 1, got 0"):
        ResNet(20, num_classes=0)
    with pytest.raises(ValueError, match=r"expected in_channels >= 1, got 0"):
        ResNet(20, in_channels=0)
    with pytest.raises(ValueError, match=r"expected 16 \* width >= 1, got 0.16"):
        ResNet(20, width=0.01)
    with pytest.raises(ValueError, match=r"expected shortcut 'A'.*got 'C'"):
        ResNet(20, shortcut="C")
