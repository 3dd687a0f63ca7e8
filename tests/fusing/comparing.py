"""What the tests of additions compare: chains by name, results bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import spfde


def chains(model: nn.Module) -> dict[str, str]:
    """Of the norms and of the sparse layers, by name."""
    report = spfde.fuse.report(model)
    return {row.name: row.chain for row in (*report.rows, *report.layers)}


def results(model: nn.Module, *inputs: Tensor | float) -> list[Tensor]:
    """Outputs in training and in evaluation, and the gradients of inputs and parameters in both."""
    found = []
    torch.manual_seed(0)
    for mode in (True, False):
        given = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
        wanted = [x for x in (*given, *model.parameters()) if isinstance(x, Tensor) and x.requires_grad]
        y = model.train(mode)(*given)
        found += [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, materialize_grads=True)]
    return found


def same(model: nn.Module, plain: nn.Module, *inputs: Tensor | float) -> bool:
    """Whether outputs and gradients are equal to the bit."""
    got, expected = results(model, *inputs), results(plain, *inputs)
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(got, expected, strict=True))
