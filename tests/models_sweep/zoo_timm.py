"""timm's image networks, the smallest of each family, narrowed and shortened where their options allow it."""

from __future__ import annotations

from typing import Any

from models_sweep.definition import Definition, images
from torch import nn


def timm(name: str, size: int = 64, batch: int = 4, **options: Any) -> tuple[str, Definition]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options)

    return f"timm: {name}", Definition(make, images(batch, size))


CONVOLUTIONAL = [
    timm("resnet10t"),
    timm("resnet50", layers=(1, 1, 1, 1)),
    timm("seresnet18", layers=(1, 1, 1, 1)),
    timm("regnety_002"),
    timm("densenet121", block_config=(2, 2, 2, 2)),
    timm("efficientnet_b0"),
    timm("tf_mobilenetv3_small_minimal_100"),
    timm("mobilenetv3_small_050"),
    timm("mobilenetv2_050"),
    timm("convnext_atto"),
    timm("convnextv2_atto"),
    timm("resnetv2_50x1_bit", 32),
    timm("nf_resnet26", 32),
    timm("repvgg_a0"),
    timm("mobileone_s0"),
    timm("vgg11_bn", mlp_ratio=0.05),
    timm("inception_v3", 96),
    timm("dla46_c"),
    timm("hrnet_w18_small"),
    timm("ghostnet_050"),
    timm("res2net50_14w_8s", layers=(1, 1, 1, 1)),
    timm("fastvit_t8"),
    timm("starnet_s1"),
]

TRANSFORMERS = [
    timm("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, depth=3, embed_dim=48),
    timm("deit_tiny_distilled_patch16_224", 32, img_size=32, patch_size=8, depth=3, embed_dim=48),
    timm("swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    timm("swinv2_tiny_window8_256", 64, img_size=64, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    timm("swinv2_cr_tiny_224", 56, img_size=56, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    timm("beit_base_patch16_224", 32, img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3),
    timm("eva02_tiny_patch14_224", 32, img_size=32, patch_size=8, depth=3, embed_dim=48),
    timm("levit_128s", 224, batch=2),
    timm("efficientformer_l1", 224, batch=2, depths=(1, 1, 1, 2), num_vit=1),
    timm("tiny_vit_5m_224", 224, batch=2),
    timm("visformer_tiny", 64, img_size=64),
    timm("coat_lite_tiny", 64, img_size=64),
    timm("pvt_v2_b0"),
    timm("mobilevit_xxs"),
    timm("cait_xxs24_224", 32, img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3),
    timm("gmlp_ti16_224", 64, img_size=64),
    timm("maxvit_pico_rw_256", 64, img_size=64),
]


def mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=3, embed_dim=48)


MIXER = ("timm: MlpMixer", Definition(mixer, images(size=32)))

ZOO = dict([*CONVOLUTIONAL, *TRANSFORMERS, MIXER])
