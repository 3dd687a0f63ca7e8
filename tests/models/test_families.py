"""What is particular to a family: structure, the function it computes, how it starts, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spfde import models
from spfde.models.mobilenet import InvertedResidual
from spfde.models.transformer import Attention, Block
from spfde.models.vgg import STAGES


@pytest.mark.parametrize(("depth", "form"), [(18, "imagenet"), (50, "imagenet"), (50, "cifar")])
def test_resnet_depth_counts_the_weighted_layers_of_the_main_path(depth, form):
    net = models.ImageNetResNet(depth, form, width=0.125)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(names) == depth


def test_resnet_stages_have_the_papers_channels_and_sizes():
    net = models.create("resnet50", width=0.25)
    x = net.maxpool(net.relu(net.bn1(net.conv1(torch.randn(1, 3, 64, 64)))))
    assert x.shape == (1, 16, 16, 16)
    for stage, (channels, size) in enumerate([(64, 16), (128, 8), (256, 4), (512, 2)], 1):
        x = net.get_submodule(f"layer{stage}")(x)
        assert x.shape == (1, channels, size, size)


def test_the_cifar_stem_keeps_the_resolution():
    net = models.create("resnet18_cifar", width=0.25)
    assert net.maxpool(net.conv1(torch.randn(1, 3, 9, 7))).shape == (1, 16, 9, 7)


@pytest.mark.parametrize(("channels", "stride"), [((8, 8), 1), ((4, 8), 2)])
def test_a_bottleneck_adds_its_shortcut(channels, stride):
    block = models.Bottleneck(*channels, stride, "B").eval()
    x = torch.randn(2, channels[0], 5, 6)
    inner = block.bn3(block.conv3(block.conv2(block.conv1(x).relu()).relu()))  # fresh norms are (nearly) the identity
    torch.testing.assert_close(block(x), (inner + block.shortcut(x)).relu(), rtol=1e-3, atol=1e-3)
    assert block.conv2.stride == (stride, stride)
    assert block.conv1.out_channels == 2


def test_resnet_refuses_depths_it_does_not_have():
    with pytest.raises(ValueError, match="expected a depth of 18 or 50, got 34, try"):
        models.ImageNetResNet(34)
    with pytest.raises(ValueError, match=r"expected 64 \* width >= 1, got 0.64"):
        models.ImageNetResNet(18, width=0.01)


def test_vgg_is_configuration_e():
    for name, linears in (("vgg19_bn", 3), ("vgg19_bn_cifar", 1)):
        with torch.device("meta"):
            net = models.create(name)
        convolutions = [m.out_channels for m in net.features if isinstance(m, nn.Conv2d)]
        assert convolutions == [channels for channels, count in STAGES for _ in range(count)]
        assert convolutions == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
        assert sum(isinstance(m, nn.Linear) for m in net.classifier) == linears
        assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_vgg_in_imagenet_form_takes_any_size_from_32_up():
    with torch.device("meta"):
        net = models.create("vgg19_bn", width=0.125)
        assert net(torch.randn(1, 3, 32, 47)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"expected 64 \* width >= 1, got 0.64"):
        models.VGG19(width=0.01)


def test_convolutions_start_with_he_variance_and_linears_with_the_papers():
    torch.manual_seed(0)
    net = models.create("vgg19_bn_cifar", width=0.5, num_classes=1000)
    assert net.features[49].weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert net.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not net.features[49].bias.any() and not net.classifier[0].bias.any()
    torch.manual_seed(0)
    depthwise = models.create("mobilenet_v2_cifar").blocks[15].depthwise[0]
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("width", "millions"), [(0.5, 1.97), (0.75, 2.64), (1.4, 6.11)])
def test_mobilenet_widths_are_the_published_ones(width, millions):
    with torch.device("meta"):
        net = models.create("mobilenet_v2", width=width)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 1), ("mobilenet_v2_cifar", 2)])
def test_mobilenet_forms_differ_in_the_stem(name, size):
    net = models.create(name, width=0.25)
    assert len(net.blocks) == 17
    assert net.blocks(net.stem(torch.randn(2, 3, 32, 32))).shape[2:] == (size, size)


@pytest.mark.parametrize(
    ("channels", "stride", "expansion", "residual"),
    [((8, 8), 1, 6, True), ((8, 8), 2, 6, False), ((8, 4), 1, 1, False)],
)
def test_an_inverted_residual_adds_its_input_where_shapes_agree(channels, stride, expansion, residual):
    block = InvertedResidual(*channels, stride, expansion).eval()
    nn.init.zeros_(block.project[1].weight)
    x = torch.randn(2, channels[0], 5, 7)
    y = block(x)
    assert y.shape == (2, channels[1], math.ceil(5 / stride), math.ceil(7 / stride))
    assert torch.equal(y, x if residual else torch.zeros_like(y))
    assert block.depthwise[0].groups == channels[0] * expansion


def test_mobilenet_refuses_no_width():
    for width in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected width > 0, got .*, try 0.5"):
            models.MobileNetV2(width=width)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_the_papers_equation(causal, bias):
    layer = Attention(15, heads=3, causal=causal, bias=bias)
    x = torch.randn(2, 7, 15)
    double = {n: p.detach().double() for n, p in layer.named_parameters()}

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ double[f"{name}.weight"].T + double.get(f"{name}.bias", 0)

    y = []
    for head in range(3):
        q, k, v = (linear(name, x.double())[..., 5 * head : 5 * head + 5] for name in "qkv")
        scores = q @ k.transpose(1, 2) / 5**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -math.inf)
        y.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(layer(x).double(), linear("proj", torch.cat(y, -1)), rtol=1e-5, atol=1e-6)


def test_vit_reads_patches_in_place():
    net = models.ViT(8, 1, heads=2, image_size=12, patch_size=4, num_classes=3).eval()
    assert net.position.shape == (1, 10, 8)
    seen = []
    net.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 3, 12, 12)
    changed = x.clone()
    changed[:, :, 4:8, 8:] += 1  # row 1, column 2 of the patches
    net(x), net(changed)
    moved = (seen[0] != seen[1]).any(-1)
    assert moved.nonzero()[:, 1].tolist() == [6, 6]
    assert torch.equal(seen[0][:, :1], (net.class_token + net.position[:, :1]).expand(2, -1, -1))


def test_vit_starts_as_deit():
    torch.manual_seed(0)
    net = models.ViT(192, 1, heads=3, image_size=32, patch_size=4, num_classes=100)
    for weight in (net.blocks[0].mlp.fc1.weight, net.position, net.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.patch.weight.std().item() == pytest.approx((1 / 48) ** 0.5, rel=0.05)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def test_vit_refuses_sizes_that_do_not_fit():
    with pytest.raises(
        ValueError, match="expected image_size to be a multiple of patch_size, got 30 and 4, try image_size=28"
    ):
        models.ViT(8, 1, 2, image_size=30, patch_size=4)
    with pytest.raises(ValueError, match="expected dim to be a multiple of heads, got 8 and 3, try dim=6"):
        models.ViT(8, 1, 3)
    with pytest.raises(ValueError, match="expected depth >= 1, got 0"):
        models.ViT(8, 0, 2)
    net = models.ViT(8, 1, 2, image_size=8, patch_size=4)
    for shape in ((1, 3, 9, 8), (1, 3, 8, 9), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected images \[n, channels, 8, 8\], got .*, try image_size="):
            net(torch.randn(shape))


def test_gpt_does_not_look_ahead():
    net = models.GPT(16, 2, heads=2, vocab_size=11, context=9).eval()
    tokens = torch.randint(11, (3, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    y, z = net(tokens), net(changed)
    torch.testing.assert_close(y[:, :5], z[:, :5])
    assert ((y - z).abs().amax((0, 2)) > 1e-6).tolist() == [False] * 5 + [True] * 4
    torch.testing.assert_close(net(tokens[:, :4]), y[:, :4])


def test_gpt_knows_where_a_token_is():
    net = models.GPT(16, 1, heads=2, vocab_size=11, context=9).eval()
    y = net(torch.full((1, 5), 3))
    assert not torch.allclose(y[0, 1], y[0, 4])


def test_gpt_starts_as_gpt2():
    torch.manual_seed(0)
    net = models.GPT(128, 8, heads=4, vocab_size=300, context=64)
    for weight in (net.token.weight, net.position, net.blocks[7].attention.q.weight, net.blocks[0].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (net.blocks[7].attention.proj.weight, net.blocks[0].mlp.fc2.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not any(m.bias.any() for m in net.blocks.modules() if isinstance(m, nn.Linear))
    # Tied or not, a network that knows nothing says so: the loss is that of a uniform guess.
    tokens = torch.randint(300, (4, 32))
    loss = nn.functional.cross_entropy(net(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(300), rel=0.02)


def test_gpt_without_biases_has_none():
    net = models.GPT(8, 2, heads=2, vocab_size=5, context=4, bias=False)
    assert not [n for n, _ in net.named_parameters() if n.endswith("bias")]
    assert [n for n, _ in models.GPT(8, 2, 2, 5, 4).named_parameters() if n.endswith("bias")]


def test_gpt_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="expected dim to be a multiple of heads, got 8 and 16, try dim=16"):
        models.GPT(8, 1, heads=16)
    with pytest.raises(ValueError, match="expected context >= 1, got 0"):
        models.GPT(8, 1, 2, context=0)
    net = models.GPT(8, 1, 2, vocab_size=5, context=4)
    for shape in ((1, 5), (4,)):
        with pytest.raises(ValueError, match=r"expected tokens \[n, t\] with t <= 4, got .*, try context="):
            net(torch.zeros(shape, dtype=torch.long))


def test_a_block_is_two_residual_branches():
    block = Block(6, heads=2)
    nn.init.zeros_(block.attention.proj.weight)
    nn.init.zeros_(block.attention.proj.bias)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.ones_(block.mlp.fc2.bias)
    x = torch.randn(2, 3, 6)
    assert torch.equal(block(x), x + 1)
