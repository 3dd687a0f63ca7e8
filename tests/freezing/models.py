"""Small models written the way the well-known ones are."""

import torch
from torch import nn


class Basic(nn.Module):
    """Residual block with one ReLU used twice, shortcut convolution where the shape changes."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.downsample = None
        if stride > 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, two stages of two blocks, head; registered back to front."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * width, 5)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.layer2 = nn.Sequential(Basic(width, 2 * width, 2), Basic(2 * width, 2 * width))
        self.layer1 = nn.Sequential(Basic(width, width), Basic(width, width))
        self.maxpool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class VGG(nn.Module):
    """Plain chain: convolution, norm, activation; two linear layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((3, 4), (4, 4), (4, 8)):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class ConvNormAct(nn.Sequential):
    """As in torchvision: a subclass of Sequential."""

    def __init__(self, i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(o), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = i * expand
        layers = [ConvNormAct(i, hidden, 1)] if expand > 1 else []
        project = nn.Conv2d(hidden, o, 1, bias=False)
        self.conv = nn.Sequential(*layers, ConvNormAct(hidden, hidden, 3, stride, hidden), project, nn.BatchNorm2d(o))
        self.skip = stride == 1 and i == o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormAct(3, 4, 3, 2),
            InvertedResidual(4, 4, 1, 1),
            InvertedResidual(4, 8, 2, 6),
            InvertedResidual(8, 8, 1, 6),
            ConvNormAct(8, 16, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Holds the position embedding, the layers and the last norm, as torchvision's does."""

    def __init__(self, tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(*(TransformerBlock(width) for _ in range(depth)))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class ViT(nn.Module):
    """Patches, class token and position embedding used directly by the model, encoder, head."""

    def __init__(self, width: int = 8, depth: int = 3, side: int = 8) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder((side // 4) ** 2 + 1, width, depth)
        self.scale = nn.Parameter(torch.ones(width))  # used after the last block
        self.heads = nn.Sequential(nn.Linear(width, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0] * self.scale)


MODELS = {"resnet": ResNet, "vgg": VGG, "mobilenet": MobileNetV2, "vit": ViT}
IMAGES = (4, 3, 8, 8)
