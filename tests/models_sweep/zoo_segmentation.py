"""segmentation_models_pytorch's decoders on small encoders."""

from __future__ import annotations

from typing import Any

from models_sweep.definition import Definition, images
from torch import nn


def segmentation(kind: str, encoder: str, size: int = 64, **options: Any) -> tuple[str, Definition]:
    def make() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, kind)(encoder, encoder_weights=None, classes=3, **options)

    return f"smp: {kind}, {encoder}", Definition(make, images(3, size))


ZOO = dict(
    [
        segmentation("Unet", "resnet18", decoder_channels=(64, 32, 16, 8, 8)),
        segmentation("UnetPlusPlus", "mobilenet_v2", decoder_channels=(64, 32, 16, 8, 8)),
        segmentation("FPN", "mobilenet_v2"),
        segmentation("Linknet", "tu-regnetx_002"),
        segmentation("PSPNet", "mobilenet_v2"),
        segmentation("DeepLabV3Plus", "mobilenet_v2"),
        segmentation("UPerNet", "mobilenet_v2", decoder_channels=32),
        segmentation("Segformer", "mit_b0"),
    ]
)
