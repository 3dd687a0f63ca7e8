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

from spfde.kernels.choice import Problem


class Cost(NamedTuple):
    """The constants of one op on one instruction set."""

    multiply: float
    power: float
    copy: float
    constant: float
    tall: float


AVX2 = {
    "linear": Cost(multiply=1.88, power=0.914, copy=20.0, constant=0.0333, tall=1.39),
    "conv2d": Cost(multiply=1.06, power=0.676, copy=7.55, constant=0.0711, tall=1.35),
}
COSTS = {"avx2": AVX2}  # an instruction set that was not measured takes AVX2's: the dense product grows with it too
LANES = 64  # lanes of a full strip; fewer leave the multiply-add units waiting
MASKED = 1.1  # the masked dense route over the plain dense layer, large
MASKED_COPY = 20.0  # and where a convolution moves much and multiplies little, in the memory format it is given
MASKED_CALL = 1e6  # what its extra calls cost whatever the size (about 60 microseconds), in dense multiply-adds


def constants(op: str, isa: str) -> Cost:
    """Those of an op ("linear" or "conv2d") on an instruction set."""
    return COSTS.get(isa, AVX2)[op]


def masked(problem: Problem) -> float:
    """Predicted time of the masked dense route over the plain dense layer's."""
    moved = 0.0 if problem.op == "linear" else MASKED_COPY * copied_per_position(problem) / max(1, prod(problem.shape))
    return MASKED + moved + MASKED_CALL / max(1, problem.multiply_adds)


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
