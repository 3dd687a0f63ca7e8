"""MobileNet-V2: inverted residuals and linear bottlenecks (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from spfde.models.common import check_counts, check_form, start

STEM, LAST = 32, 1280
# The paper's table 2: expansion, channels, blocks, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens (unless expansion is 1), a 3x3 depthwise one, a linear 1x1 one that narrows.

    [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]; x is added where the shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = nn.Identity() if expansion == 1 else _convolution(in_channels, inner, 1)
        self.depthwise = _convolution(inner, inner, 3, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, 1x1 convolution, linear: images [N, in_channels, H, W] to logits [N, num_classes].

    Convolutions start with He's variance, the linear with N(0, 0.01²). Parameters at width 1: 3,504,872 with 1000
    classes, 2,236,682 with 10.

    Args:
        form: "imagenet" has a stem at stride 2, "cifar" one at stride 1.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channel counts, rounded to multiples of 8; the last one does not shrink below 1280.
        dropout: in front of the linear.

    Raises:
        ValueError: an unknown form, no channels or classes, width <= 0, or a dropout outside of [0, 1].
    """

    def __init__(
        self,
        form: str = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_form(form)
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if not width > 0:
            raise ValueError(f"expected width > 0, got {width}, try 0.5")
        channels = _scaled(STEM, width)
        blocks: list[nn.Module] = []
        self.stem = _convolution(in_channels, channels, 3, stride=2 if form == "imagenet" else 1)
        for expansion, out_channels, repeats, first_stride in STAGES:
            for i in range(repeats):
                scaled = _scaled(out_channels, width)
                blocks.append(InvertedResidual(channels, scaled, first_stride if i == 0 else 1, expansion))
                channels = scaled
        self.blocks = nn.Sequential(*blocks)
        last = _scaled(LAST, max(1.0, width))
        self.last = _convolution(channels, last, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last, num_classes)
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def _scaled(channels: int, width: float) -> int:
    """The multiple of 8 nearest to channels * width, at least 8, at most 10% below it: the authors' own rule."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
