"""Models: `build(name, ...)` returns one of the networks the methods were published on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from spfde._names import unknown
from spfde.models.resnet import BasicBlock, ResNet

__all__ = ["MODELS", "BasicBlock", "ResNet", "build"]

MODELS: Mapping[str, int] = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


def build(name: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """Build the network called `name`; `options` are those of its class, such as `width=2` of "resnet32".

    Raises:
        ValueError: the name, an option or an option's value is not a known one.
    """
    if name not in MODELS:
        raise unknown("a model", name, MODELS)
    known = [option for option in inspect.signature(ResNet).parameters if option != "depth"]
    for option in options:
        if option not in known:
            raise unknown(f"an option of {name!r}", option, known)
    return ResNet(MODELS[name], num_classes=num_classes, in_channels=in_channels, **options)
