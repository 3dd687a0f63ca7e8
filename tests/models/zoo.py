"""Every family small enough for a test: how to make it, an input, the names of its blocks and of what stays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spfde import models


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    blocks: list[str]
    rest: list[str]
    tokens: int = 0

    def input(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def stages(*counts: int) -> list[str]:
    return [f"layer{stage}.{i}" for stage, count in enumerate(counts, 1) for i in range(count)]


CONVOLUTIONS = (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49)  # in VGG's features

CASES = {
    "resnet18": Case(
        lambda: models.create("resnet18", width=0.25, num_classes=7, in_channels=2),
        (2, 2, 37, 33), (2, 7), stages(2, 2, 2, 2), ["conv1", "fc"],
    ),
    "resnet50": Case(
        lambda: models.create("resnet50", width=0.125, num_classes=7),
        (2, 3, 64, 64), (2, 7), stages(3, 4, 6, 3), ["conv1", "fc"],
    ),
    "resnet18_cifar": Case(
        lambda: models.create("resnet18_cifar", width=0.25),
        (2, 3, 17, 15), (2, 10), stages(2, 2, 2, 2), ["conv1", "fc"],
    ),
    "vgg19_bn": Case(
        lambda: models.create("vgg19_bn_cifar", width=0.125, in_channels=1),
        (2, 1, 35, 32), (2, 10), [f"features.{i}" for i in CONVOLUTIONS], ["classifier.0"],
    ),
    "mobilenet_v2": Case(
        lambda: models.create("mobilenet_v2_cifar", width=0.35),
        (2, 3, 29, 32), (2, 10), [f"blocks.{i}" for i in range(17)], ["stem.0", "last.0", "classifier"],
    ),
    "vit": Case(
        lambda: models.ViT(24, 3, heads=3, image_size=12, patch_size=4, num_classes=5, in_channels=2),
        (2, 2, 12, 12), (2, 5), ["blocks.0", "blocks.1", "blocks.2"], ["patch", "head"],
    ),
    "gpt": Case(
        lambda: models.GPT(24, 3, heads=3, vocab_size=31, context=16),
        (2, 11), (2, 11, 31), ["blocks.0", "blocks.1", "blocks.2"], ["head"], tokens=31,
    ),
}  # fmt: skip
