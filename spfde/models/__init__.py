"""The model zoo: `create(name, ...)` returns one of the networks the methods were published on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from spfde._names import unknown
from spfde.models.gpt import GPT
from spfde.models.mobilenet import MobileNetV2
from spfde.models.resnet import BasicBlock, Bottleneck, ImageNetResNet, ResNet
from spfde.models.vgg import VGG19
from spfde.models.vit import ViT

__all__ = [
    "GPT",
    "MODELS",
    "VGG19",
    "BasicBlock",
    "Bottleneck",
    "ImageNetResNet",
    "MobileNetV2",
    "ResNet",
    "ViT",
    "create",
    "options",
]

# What is given by position is what the name stands for; the rest are options.
MODELS: Mapping[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": partial(ImageNetResNet, depth, "imagenet") for depth in (18, 50)},
    **{f"resnet{depth}_cifar": partial(ImageNetResNet, depth, "cifar", num_classes=10) for depth in (18, 50)},
    "vgg19_bn": partial(VGG19, "imagenet"),
    "vgg19_bn_cifar": partial(VGG19, "cifar", num_classes=10),
    "mobilenet_v2": partial(MobileNetV2, "imagenet"),
    "mobilenet_v2_cifar": partial(MobileNetV2, "cifar", num_classes=10),
    "vit_tiny": partial(ViT, 192, 12, 3),
    "vit_small": partial(ViT, 384, 12, 6),
    "vit_tiny_cifar": partial(ViT, 192, 12, 3, image_size=32, patch_size=4, num_classes=10),
    "vit_small_cifar": partial(ViT, 384, 12, 6, image_size=32, patch_size=4, num_classes=10),
    "gpt2": partial(GPT, 768, 12, 12),
    "gpt_mini": partial(GPT, 384, 6, 6, vocab_size=65, context=256, bias=False),
    "gpt_micro": partial(GPT, 192, 4, 4, vocab_size=256, context=128, bias=False),
}


def create(name: str, **given: Any) -> nn.Module:
    """Create the network called `name`, its weights drawn anew; `given` are its options, such as `width=2`.

    Raises:
        ValueError: the name, an option or an option's value is not a known one.
    """
    known = options(name)
    for option in given:
        if option not in known:
            raise unknown(f"an option of {name!r}", option, known)
    return MODELS[name](**given)


def options(name: str) -> tuple[str, ...]:
    """Names of the options that `create` takes for the network called `name`.

    Raises:
        ValueError: the name is not a known one.
    """
    if name not in MODELS:
        raise unknown("a model", name, MODELS)
    return tuple(inspect.signature(MODELS[name]).parameters)
