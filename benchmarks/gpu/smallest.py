"""One training step of the smallest layers that reach every kernel, for compute-sanitizer: it makes them slow."""

from __future__ import annotations

import torch
from torch import nn

import spfde


def main() -> None:
    """A linear layer, a convolution with a stride and odd sizes, and a pointwise one."""
    torch.manual_seed(0)
    for dense, shape in (
        (nn.Linear(40, 33), (20, 40)),
        (nn.Conv2d(40, 33, 3, 2, 1), (1, 40, 5, 6)),
        (nn.Conv2d(32, 32, 1), (1, 32, 4, 4)),
    ):
        layer = spfde.sparsify(dense, 0.5, pattern="block:16x16").cuda()
        layer.kernel = "triton"
        layer(torch.randn(shape, device="cuda", requires_grad=True)).sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
