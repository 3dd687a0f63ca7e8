"""What the tests of fused layers run: small networks, sparse and frozen, and their answer in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import spfde
from spfde.nn import SparseLayer


class Block(nn.Module):
    """act(norm(conv(x)) + x), the activation given by the test."""

    def __init__(self, act="relu", added=True, bias=False, stride=1, kernel=3, norm=None, **options):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, kernel, stride, kernel // 2, bias=bias, **options)
        self.norm = nn.BatchNorm2d(16, **(norm or {}))
        self.act, self.added = {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "none": nn.Identity()}[act], added

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y + residual if self.added else y)


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, act, bias=True):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(32, 48, bias), nn.Linear(48, 16, bias), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def sparse(model: nn.Module, kernel: str = "triton", fused: bool = True, pattern: str = "block:16x16") -> nn.Module:
    """The model with statistics and sparse layers, frozen."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.copy_(torch.randn(m.num_features, generator=generator))
            m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)
        if isinstance(m, nn.BatchNorm2d) and m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5, generator)
            nn.init.uniform_(m.bias, -1, 1, generator)
    names = {n: 0.5 for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[1] > 3}
    model = spfde.sparsify(model, pattern=pattern, distribution=names)
    for m in model.modules():
        if isinstance(m, SparseLayer):
            m.kernel = kernel
    model = spfde.freezing.freeze(model)
    return spfde.fuse(model) if fused else model


def exact(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The model unfused, dense and in float64."""
    twin = spfde.densify(spfde.unfuse(copy.deepcopy(model))).double()
    return twin(*(x.detach().double() for x in inputs)).detach()


def close(y: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    assert y.shape == expected.shape
    assert float((y.double() - expected).norm()) <= limit * float(expected.norm())


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
