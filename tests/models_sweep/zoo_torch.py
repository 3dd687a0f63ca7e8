"""Networks of torch.nn alone, as tutorials write them."""

from __future__ import annotations

import torch
from models_sweep.definition import Definition, images
from torch import Tensor, nn


def tokens(batch: int = 3, length: int = 9, vocabulary: int = 40):
    return lambda: (torch.randint(vocabulary, (batch, length)),)


def features(*shape: int):
    return lambda: (torch.randn(*shape),)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 64), nn.ReLU(inplace=True), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.GELU(),
        nn.Dropout(0.5), nn.Linear(64, 5),
    )  # fmt: skip


def token_mlp() -> nn.Module:
    inner = nn.Sequential(nn.Linear(16, 64), nn.ReLU(inplace=True), nn.Linear(64, 32), nn.SiLU(inplace=True))
    return nn.Sequential(inner, nn.LayerNorm(32), nn.Linear(32, 32), nn.Hardswish(inplace=True), nn.Linear(32, 5))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.GroupNorm(4, 32), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2, padding_mode="reflect"), nn.InstanceNorm2d(32, affine=True),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class AutoEncoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(True), nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2, True),
        )  # fmt: skip
        self.middle = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True))
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(True), nn.ConvTranspose2d(16, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(self.middle(self.down(x))))


class Encoder(nn.Module):
    """Embedding, nn.TransformerEncoder, the mean of the tokens."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.position = nn.Parameter(torch.randn(1, 9, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.position).mean(1))


class Translator(nn.Module):
    """nn.Transformer between two embeddings and a linear over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 32), nn.Embedding(30, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=mask))


class Attention(nn.Module):
    """Residual nn.MultiheadAttention of keys and values of other sizes, with a linear on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 32), nn.Linear(32, 32)
        self.attention = nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        y = self.norm(y + self.attention(y, x, x, need_weights=False)[0])
        return self.head(torch.relu(self.after(y)).mean(1))


class Recurrent(nn.Module):
    """An embedding, an LSTM or a GRU, linears on its last state."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.recurrent = kind(24, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.recurrent(self.embed(x))[0][:, -1])))


class Convolutions1d(nn.Module):
    """Audio: strided Conv1d layers, then linears over time."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(1, 16, 9, 4), nn.ReLU(), nn.Conv1d(16, 32, 5, 2), nn.BatchNorm1d(32))
        self.mix = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x).transpose(1, 2)
        return self.head((y + self.mix(y)).mean(1))


class TwoTowers(nn.Module):
    """Two inputs, two towers, a product of what they find."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.right = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.scale * self.left(left) @ self.right(right).T


ZOO = {
    "torch: MLP": Definition(mlp, images(size=8)),
    "torch: MLP on tokens": Definition(token_mlp, features(3, 7, 16)),
    "torch: CNN": Definition(cnn, images(size=24)),
    "torch: autoencoder": Definition(AutoEncoder, images(size=16)),
    "torch: TransformerEncoder": Definition(lambda: Encoder(False), tokens()),
    "torch: TransformerEncoder, norm first": Definition(lambda: Encoder(True), tokens()),
    "torch: Transformer": Definition(
        Translator, lambda: (torch.randint(40, (3, 9)), torch.randint(30, (3, 7)))
    ),
    "torch: MultiheadAttention": Definition(Attention, features(3, 7, 16)),
    "torch: LSTM": Definition(lambda: Recurrent(nn.LSTM), tokens()),
    "torch: GRU": Definition(lambda: Recurrent(nn.GRU), tokens()),
    "torch: Conv1d": Definition(Convolutions1d, features(3, 1, 256)),
    "torch: two towers": Definition(TwoTowers, lambda: (torch.randn(6, 16), torch.randn(6, 12))),
}  # fmt: skip
