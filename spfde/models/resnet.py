"""The residual networks for small images of He et al. (2015), section 4.2: 3 stages of n blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 16  # channels of the first stage at width 1


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


class ResNet(nn.Module):
    """CIFAR-form residual network: images [N, in_channels, H, W] to logits [N, num_classes].

    conv1, bn1, then layer1..layer3 of (depth - 2) / 6 BasicBlocks each with 16, 32, 64 times `width`
    channels, the second and third at half the resolution of the one before, global average pooling, fc.
    Weights start as in the paper (He initialisation, from the global random generator).

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
        self.layer1 = _stage(channels[0], channels[0], blocks, 1, shortcut)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    rest = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


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
    counts = {"num_classes": num_classes, "in_channels": in_channels, "16 * width": STEM * width}
    for name, value in counts.items():
        if not value >= 1:
            raise ValueError(f"expected {name} >= 1, got {value}, try a larger number")
    if shortcut not in ("A", "B"):
        raise ValueError(f"expected shortcut 'A' (padding) or 'B' (1x1 convolution), got {shortcut!r}, try 'A'")
