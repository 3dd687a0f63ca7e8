"""The cost model behind the dispatch rule: time of the native kernel over the dense product's, forward + backward.

ratio = multiply * density * waste + copy * copied / weights + constant, with the dense product's multiply-adds as the
unit. waste: positions computed per position used. copied: activations packed and unpacked per output position. The
constants are a fit by eye to whole-layer timings on two AVX2 cores (`benchmarks/layers.py` takes such timings); the
shape of the model is the kernels' own: a stream per stored weight, plus copies that do not shrink with the density.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

from spfde.kernels.choice import KernelChoice
from spfde.pattern import Window

MULTIPLY = 2.1  # a stored weight's multiply-adds against the dense product's
COPY_PLANES = 17.0  # one activation into or out of padded planes, in multiply-adds of the dense product
COPY_STRIDED = 30.0  # the same where a stride scatters it over phases
COPY_LANES = 90.0  # one activation into or out of batch lanes: a transposition
CONSTANT = 0.05
LANES = 64  # lanes of a full strip; fewer leave the multiply-add units waiting
WORTH = 1.1  # the masked dense route costs this much over the plain dense layer


@dataclass(frozen=True)
class Estimate:
    """Predicted time of the native kernel over the dense product's."""

    ratio: float
    density: float


def linear(batch: int, shape: tuple[int, int], nnz: int) -> Estimate:
    """The estimate for a [rows, cols] weight with `nnz` stored weights and `batch` input rows."""
    size = max(1, prod(shape))
    density = nnz / size
    idle = sqrt(max(1.0, LANES / max(batch, 8)))
    return Estimate(MULTIPLY * density * idle + COPY_LANES * sum(shape) / size + CONSTANT, density)


def convolution(batch: int, size: tuple[int, int], shape: tuple[int, ...], window: Window, nnz: int) -> Estimate:
    """The estimate for a weight of dense `shape` with outputs of `size`."""
    weights = max(1, prod(shape))
    density = nnz / weights
    steps = prod(window.stride)
    waste = prod((n + k - 1) / n for n, k in zip(size, (min(2, k) for k in window.kernel), strict=True))
    copied = shape[1] * window.groups * steps + shape[0]
    copy = COPY_PLANES if steps == 1 else COPY_STRIDED
    idle = sqrt(max(1.0, LANES / max(batch * prod(size), 8)))
    return Estimate(MULTIPLY * density * waste * idle + copy * copied / weights + CONSTANT, density)


def choose(estimate: Estimate) -> KernelChoice:
    """The native kernel where it is predicted to beat the masked dense product."""
    speedup = 1 / estimate.ratio
    text = f"predicted {speedup:.1f}x the dense product at density {estimate.density:.2f}"
    return KernelChoice("native" if estimate.ratio < WORTH else "dense", text)
