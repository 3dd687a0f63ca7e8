"""VGG-19 with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration E)."""

from __future__ import annotations

from torch import Tensor, nn

from spfde.models.common import check_counts, check_form, start

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions
HIDDEN = 4096


class VGG19(nn.Module):
    """16 convolutions 3x3 with BatchNorm, a classifier: images [N, in_channels, H, W] to logits [N, num_classes].

    Convolutions and linears have biases, as in the paper. Convolutions start with He's variance (the paper started
    deep networks from trained shallow ones, which normalisation makes needless), linears with the paper's N(0, 0.01²).
    Parameters at width 1: 143,678,248 in ImageNet form with 1000 classes, 20,040,522 in CIFAR form with 10.

    Args:
        form: "imagenet" has the paper's three linears on 7x7 features; "cifar" one linear on their average.
        num_classes: number of logits.
        in_channels: channels of the images, which have 32 pixels or more on a side.
        width: factor on the channel counts of the convolutions.
        dropout: after the first two linears of the ImageNet form.

    Raises:
        ValueError: an unknown form, no channels or classes, or a dropout outside of [0, 1].
    """

    def __init__(
        self,
        form: str = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_form(form)
        check_counts(**{"num_classes": num_classes, "in_channels": in_channels, "64 * width": STAGES[0][0] * width})
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels, convolutions in STAGES:
            for _ in range(convolutions):
                scaled = round(out_channels * width)
                layers += [nn.Conv2d(channels, scaled, 3, padding=1), nn.BatchNorm2d(scaled), nn.ReLU(inplace=True)]
                channels = scaled
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        if form == "cifar":
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Linear(channels, num_classes))
        else:
            self.pool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(channels * 7 * 7, HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(HIDDEN, HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(HIDDEN, num_classes),
            )  # fmt: skip
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
