"""Networks as others write them: forms of torchvision's ResNet, VGG, MobileNet-V2 and DenseNet, and awkward ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """One ReLU module called twice, an addition in place, a downsample that may be None."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class ResNet(nn.Module):
    """A stem, two stages, a forward that calls another method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2, down), BasicBlock(16, 16))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class VGG(nn.Module):
    """Features in one Sequential, with or without norms, a classifier with dropout."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for v in (8, "M", 16, 16):
            if v == "M":
                layers += [nn.MaxPool2d(2, 2)]
                continue
            conv = nn.Conv2d(channels, v, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(v), nn.ReLU(True)] if batch_norm else [conv, nn.ReLU(True)]
            channels = v
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(64, 16), nn.ReLU(True), nn.Dropout(p=0.0), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvNormActivation(nn.Sequential):
    """A Sequential by another name."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inp, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """A branch on an attribute; the last norm has no activation and its addition is in another forward."""

    def __init__(self, inp: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inp * expand
        self.use_res_connect = stride == 1 and inp == out
        self.conv = nn.Sequential(
            ConvNormActivation(inp, hidden, 1),
            ConvNormActivation(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """ReLU6 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormActivation(3, 8, 3, 2), InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))


class Functional(nn.Module):
    """Activations and additions as functions and methods; the shortcut has a norm too; dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6, 6, 3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(5))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.convs[0](x)), inplace=True)
        y = torch.relu(torch.add(y, self.norms[1](self.convs[1](y))))
        y = F.dropout(y, 0.0, training=self.training)
        y = self.norms[2](self.convs[2](y)).add(y).relu_()
        y = F.relu6(self.norms[3](self.convs[3](y)) + self.norms[4](self.convs[4](x)))
        return self.fc(y.mean((2, 3)))


ALL = {
    "resnet": ResNet,
    "vgg": lambda: VGG(True),
    "vgg without norms": lambda: VGG(False),
    "mobilenet": MobileNetV2,
    "functional": Functional,
}
