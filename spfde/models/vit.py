"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929), sizes of DeiT (Touvron et al. 2020, 2012.12877)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spfde.models.common import check_counts
from spfde.models.transformer import Block


class ViT(nn.Module):
    """Patches and a class token through `depth` blocks, the class token's logits: images to [N, num_classes].

    Images are [N, in_channels, image_size, image_size], tokens [N, 1 + (image_size / patch_size)², dim]. Linears and
    tokens start as DeiT's, from a normal of deviation 0.02 cut at ±2, the patch convolution with variance 1 / fan-in.
    Parameters at 224 pixels, patches of 16, 1000 classes: 5,717,416 (Tiny: dim 192, depth 12, 3 heads), 22,050,664
    (Small: dim 384, depth 12, 6 heads).

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads, a divisor of dim.
        image_size: pixels on a side.
        patch_size: pixels on a side of a patch, a divisor of image_size.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        ValueError: a size below 1 or not a multiple of its part; in forward, images of another size.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, depth=depth, heads=heads, image_size=image_size, patch_size=patch_size)
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if image_size % patch_size:
            raise ValueError(
                f"expected image_size to be a multiple of patch_size, got {image_size} and {patch_size}, "
                f"try image_size={max(1, image_size // patch_size) * patch_size}"
            )
        self.image_size = image_size
        self.patch = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.kaiming_normal_(self.patch.weight, nonlinearity="linear")
        nn.init.zeros_(self.patch.bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image_size(x, self.image_size)
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@torch.fx.wrap  # not to be traced into: it asks for sizes
def check_image_size(x: Tensor, size: int) -> None:
    """Refuse images of another size: some would pass, cut at the border.

    Raises:
        ValueError: x is not [N, channels, size, size].
    """
    if x.ndim != 4 or x.shape[2] != size or x.shape[3] != size:
        raise ValueError(
            f"expected images [n, channels, {size}, {size}], got {list(x.shape)}, try image_size={x.shape[-1]}"
        )
