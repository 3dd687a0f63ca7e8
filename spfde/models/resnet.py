"""Residual networks (He et al. 2015, arXiv 1512.03385): 3 stages for small images (4.2), 4 for ImageNet's (4.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spfde.models.common import check_counts, check_form

STEM = 16  # channels of the first stage at width 1
IMAGENET_STEM = 64
IMAGENET_STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # blocks in each


class PadShortcut(nn.Module):
    """Shortcut option A: every `stride`-th pixel, new channels filled with zeros; it has no parameters.

    [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.pad = (0, 0, 0, 0, before, out_channels - in_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)

    def extra_repr(self) -> str:
        return f"channels=+{sum(self.pad)}, stride={self.stride}"


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), both convolutions 3x3 without bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """relu(bn(conv(relu(bn(conv(relu(bn(conv(x)))))))) + shortcut(x)), convolutions 1x1, 3x3, 1x1 without bias.

    The 3x3 convolution has out_channels / 4 channels and the stride: the paper's code had the stride in the
    first 1x1, which throws three quarters of its input away; today's ResNet-50 has it here.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR-form residual network: images [N, in_channels, H, W] to logits [N, num_classes].

    conv1, bn1, then layer1..layer3 of (depth - 2) / 6 BasicBlocks each with 16, 32, 64 times `width`
    channels, the second and third at half the resolution of the one before, global average pooling, fc.
    Weights start as in the paper (He initialisation, from the global random generator). Parameters at width 1,
    10 classes, shortcut A: 269,722 (depth 20), 464,154 (32), 658,586 (44), 853,018 (56), 1,727,962 (110).

    Args:
        depth: weighted layers on the main path, 6n + 2 with n >= 1.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channel counts; SpFDE's ResNet-32 uses 2.
        shortcut: where the shape changes, "A" pads with zeros and has no parameters (the paper's choice for
            these networks), "B" is a 1x1 convolution with BatchNorm.

    Raises:
        ValueError: a depth other than 6n + 2, no channels or classes, or an unknown shortcut.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, shortcut: str = "A"
    ) -> None:
        super().__init__()
        _check(depth, num_classes, in_channels, width, shortcut)
        channels = [round(STEM * width) * 2**stage for stage in range(3)]
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BasicBlock, channels[0], channels[0], blocks, 1, shortcut)
        self.layer2 = _stage(BasicBlock, channels[0], channels[1], blocks, 2, shortcut)
        self.layer3 = _stage(BasicBlock, channels[1], channels[2], blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[2], num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


class ImageNetResNet(nn.Module):
    """ImageNet-form residual network: images [N, in_channels, H, W] to logits [N, num_classes].

    conv1 (7x7, stride 2), bn1, maxpool, then layer1..layer4, each but the first at half the resolution of the one
    before, global average pooling, fc. Depth 18 has two BasicBlocks of 64, 128, 256, 512 times `width` channels a
    stage, depth 50 has 3, 4, 6, 3 Bottlenecks of four times as many; shortcuts are option B. Images of any
    size will do. Weights start as in the paper. Parameters at width 1, 1000 classes: 11,689,512 (depth 18),
    25,557,032 (50); in CIFAR form with 10 classes 11,173,962 and 23,520,842.

    Args:
        depth: 18 or 50.
        form: "imagenet"; "cifar" has a 3x3 stem at stride 1 and no maxpool, as the literature's on 32x32.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channel counts.

    Raises:
        ValueError: another depth or form, no channels or classes.
    """

    def __init__(
        self,
        depth: int,
        form: str = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if depth not in IMAGENET_STAGES:
            raise ValueError(f"expected a depth of 18 or 50, got {depth}, try ResNet for 20, 32 or 56")
        check_form(form)
        check_counts(**{"num_classes": num_classes, "in_channels": in_channels, "64 * width": IMAGENET_STEM * width})
        stem = round(IMAGENET_STEM * width)
        kind, expansion = (BasicBlock, 1) if depth == 18 else (Bottleneck, 4)
        channels = [stem, *(stem * expansion * 2**stage for stage in range(4))]
        small = form == "cifar"
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False) if small else _imagenet_stem(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        for stage, blocks in enumerate(IMAGENET_STAGES[depth]):
            stride = 2 if stage else 1
            layer = _stage(kind, channels[stage], channels[stage + 1], blocks, stride, "B")
            self.add_module(f"layer{stage + 1}", layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))


def _imagenet_stem(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)


def _stage(
    kind: type[nn.Module], in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = kind(in_channels, out_channels, stride, shortcut)
    rest = (kind(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _start(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.zeros_(net.fc.bias)


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(in_channels, out_channels, stride)
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _check(depth: int, num_classes: int, in_channels: int, width: float, shortcut: str) -> None:
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"expected a depth of 6n + 2 with n >= 1, got {depth}, try 20, 32 or 56")
    check_counts(**{"num_classes": num_classes, "in_channels": in_channels, "16 * width": STEM * width})
    if shortcut not in ("A", "B"):
        raise ValueError(f"expected shortcut 'A' (padding) or 'B' (1x1 convolution), got {shortcut!r}, try 'A'")
