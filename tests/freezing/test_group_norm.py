"""A group norm behind a frozen prefix, in channels_last: torch alone crashes in its backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spfde.freezing import freeze


class Functional(nn.Module):
    """A group norm as a function."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(64)), nn.Parameter(torch.rand(64))

    def forward(self, x):
        return F.group_norm(x, 8, self.weight, self.bias)


NORMS = {"module": lambda: nn.GroupNorm(8, 64), "function": Functional}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_gradients_are_those_of_contiguous_memory(norm, frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(64, 8, 3))
    freeze(model[0] if frozen else nn.Linear(1, 1))
    x, gradients = torch.randn(2, 3, 8, 8), []
    for layout in (torch.contiguous_format, torch.channels_last):
        m = copy.deepcopy(model).to(memory_format=layout)
        m(x.contiguous(memory_format=layout)).square().sum().backward()
        gradients.append([p.grad for p in m.parameters() if p.requires_grad])
    assert len(gradients[0]) == (4 if frozen else 6)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_volumes_frozen_weights_and_second_derivatives():
    freeze(nn.Linear(1, 1))
    x = torch.randn(2, 64, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    norm = nn.GroupNorm(8, 64)
    norm.bias.requires_grad_(False)
    norm(x).square().sum().backward()
    assert norm.weight.grad is not None
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: F.group_norm(t, 2), x)
