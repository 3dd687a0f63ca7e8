"""The cost model behind the dispatch rule: time of the native kernel over the dense product's, forward + backward.

ratio = multiply * idle * density ** power + copy * copied / weights + constant, with the dense product's multiply-adds
as the unit. power < 1: the more weights a row stores, the more its streams share. Blocks of several outputs share from
the start: tall * density in place of multiply * density ** power. copied: activations packed and unpacked per output
position, which no sparsity makes fewer. idle: what a strip with free lanes costs. `benchmarks/fit_cost.py` fits the
constants to what `benchmarks/layers.py` and `benchmarks/sweep.py` measure.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import NamedTuple

from spfde.kernels.problem import Problem


class Cost(NamedTuple):
    """The constants of one op on one instruction set."""

    multiply: float
    power: float
    copy: float
    constant: float
    tall: float


class Masked(NamedTuple):
    """Constants of the masked dense route: large layers of each op, memory moved, and the extra calls.

    copy: where a convolution moves much and multiplies little. call: whatever the size, in dense multiply-adds.
    """

    linear: float
    conv2d: float
    copy: float
    call: float


AVX2 = {
    "linear": Cost(multiply=1.71, power=0.84, copy=1.13, constant=0.0645, tall=1.32),
    "conv2d": Cost(multiply=1.13, power=0.8, copy=2.89, constant=0.187, tall=0.996),
}
AVX512 = {
    "linear": Cost(multiply=1.22, power=0.858, copy=18.9, constant=0.0117, tall=1.23),
    "conv2d": Cost(multiply=1.06, power=0.828, copy=3.98, constant=0.194, tall=0.959),
}
# An instruction set that was not measured takes AVX2's: the dense product grows with it too.
COSTS = {"avx2": AVX2, "avx512": AVX512}
LANES = 64  # lanes of a full strip; fewer leave the multiply-add units waiting
TIE = 1.05  # closer than the model can tell: the sparse kernel, which needs no dense buffer
MASKED = Masked(linear=1.02, conv2d=1.12, copy=7.97, call=0.864e6)


def constants(op: str, isa: str) -> Cost:
    """Those of an op ("linear" or "conv2d") on an instruction set."""
    return COSTS.get(isa, AVX2)[op]


def masked(problem: Problem, cost: Masked = MASKED) -> float:
    """Predicted time of the masked dense route over the plain dense layer's."""
    moved = 0.0 if problem.op == "linear" else cost.copy * copied_per_position(problem) / max(1, prod(problem.shape))
    return getattr(cost, problem.op) + moved + cost.call / max(1, problem.multiply_adds)


def ratio(problem: Problem, cost: Cost) -> float:
    """Predicted time of the native kernel over the plain dense layer's; grows with the density."""
    density, height = problem.density, problem.block[0]
    idle = sqrt(max(1.0, LANES / max(problem.positions, 8)))
    multiplied = cost.tall * density if height > 1 else cost.multiply * density**cost.power
    copied = copied_per_position(problem) / max(1, prod(problem.shape))
    return multiplied * idle + cost.copy * copied + cost.constant


def copied_per_position(problem: Problem) -> int:
    """Activations read and written for one output position: a stride leaves inputs that no other output shares."""
    rows, cols = problem.shape[:2]
    return cols * problem.window.groups * prod(problem.window.stride) + rows
