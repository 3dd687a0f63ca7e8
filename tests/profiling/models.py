"""Small models whose training step takes the turns that a profile has to follow."""

import torch
import torch.nn.functional as F
from torch import nn

import spfde


class Block(nn.Module):
    """Convolution, norm and ReLU, a residual addition, a pooling function and a linear layer, batch [4, 3, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.relu(self.bn(self.conv(x)))
        return self.fc(F.relu(x).mean((2, 3)))


def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sparse_block():
    torch.manual_seed(1)
    return spfde.sparsify(Block(), distribution={"conv": 0.5, "fc": 0.5})


def loss_fn(output):
    return F.cross_entropy(output, torch.arange(len(output)) % output.shape[1])
