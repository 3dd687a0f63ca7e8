"""One training step of the smallest layers that reach every kernel, for compute-sanitizer: it makes them slow.

Those of Triton where it is installed, then those in CUDA C++ where they were built.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import spfde
from spfde.kernels import cuda, triton
from spfde.models.transformer import Block
from spfde.nn import SparseLayer


def main() -> None:
    """Runs them, each on an input of its own.

    Raises:
        SystemExit: there are neither.
    """
    torch.manual_seed(0)
    missing = {"triton": triton.why_not("cuda"), "cuda": cuda.absence()}
    if all(missing.values()):
        raise SystemExit(f"expected Triton or CUDA C++ kernels, got neither: {'; '.join(map(str, missing.values()))}")
    for kernel in (name for name, reason in missing.items() if reason is None):
        for model, shape in (*models(), *(singles() if kernel == "cuda" else ())):
            for layer in model.modules():
                if isinstance(layer, SparseLayer):
                    layer.kernel = kernel
            model.cuda()(torch.randn(shape, device="cuda", requires_grad=True)).sum().backward()
    torch.cuda.synchronize()


def models() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Layers, and a block of a transformer, with the shapes of their inputs.

    Linear: in blocks, as a dense product by tiles, and one whose longest row is cut, with tokens enough to be cut too.
    Convolutions: one with a stride and odd sizes, and a pointwise one. The block's products end with GELU and residual
    sums, on tiles of all sizes.
    """
    blocks = {"sparsity": 0.5, "pattern": "block:16x16"}
    yield spfde.sparsify(nn.Linear(40, 33), **blocks), (20, 40)
    yield spfde.sparsify(nn.Linear(40, 33), 0.5), (20, 40)
    long = nn.Linear(1600, 9 * 128)
    mask = torch.zeros_like(long.weight, dtype=torch.bool)
    mask[:128] = mask[:, :16] = True
    yield spfde.nn.SparseLinear.from_dense(long, mask, "block:128x16"), (600, 1600)
    yield spfde.sparsify(nn.Conv2d(40, 33, 3, 2, 1), **blocks), (1, 40, 5, 6)
    yield spfde.sparsify(nn.Conv2d(32, 32, 1), **blocks), (1, 32, 4, 4)
    for tokens in (20, 4100):
        yield spfde.fuse(spfde.sparsify(Block(64, 2), **blocks)), (1, tokens, 64)


def singles() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Layers for the kernels of single weights in CUDA C++, few enough of them for a sampled weight gradient."""
    for groups in (1, 3):
        yield spfde.sparsify(nn.Conv2d(36, 33, 3, 2, 1, groups=groups), 0.95), (1, 36, 5, 6)
    yield spfde.sparsify(nn.Linear(130, 140), 0.97), (20, 130)


if __name__ == "__main__":
    main()
