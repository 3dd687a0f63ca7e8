"""What was measured of a problem: seconds by kernel and the fastest launches, and which problems share a launch."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from spfde.kernels.gpu import Config
from spfde.kernels.problem import Problem
from spfde.sparse.kernel_index import Window

OPS = ("forward", "input_grad", "weight_grad")


class Launch(NamedTuple):
    """The fastest launch of an op, for programs that compute so many outputs.

    Block rows that share a program change its outputs, and with them what is fastest.
    """

    op: str
    outputs: int
    config: Config


class KernelMeasurement(NamedTuple):
    """Median seconds of forward + backward by kernel, and the launches of the kernels that have them."""

    problem: Problem
    seconds: tuple[tuple[str, float], ...]
    launches: tuple[Launch, ...] = ()

    @property
    def kernel(self) -> str:
        """The fastest; of equals, the first."""
        return min(self.seconds, key=lambda pair: pair[1])[0]

    @property
    def speedup(self) -> float:
        """The fastest sparse kernel against the masked dense product."""
        seconds = dict(self.seconds)
        return seconds.pop("dense") / min(seconds.values())

    @property
    def density(self) -> float:
        """The density it was measured at."""
        return self.problem.density


class Family(NamedTuple):
    """What problems on a GPU share a launch and a break-even density: those whose sizes lie within a halving.

    kind: see `kind_of`. sizes: bit lengths of batch x positions, rows and columns.
    """

    kind: str
    block: tuple[int, int]
    dtype: str
    sizes: tuple[int, int, int]


def family(kind: str, block: tuple[int, int], dtype: str, positions: int, rows: int, cols: int) -> Family:
    """The family of a weight [rows, cols] at work on so many positions."""
    return Family(kind, block, dtype, (positions.bit_length(), rows.bit_length(), cols.bit_length()))


def family_of(problem: Problem) -> Family:
    """The family that a problem belongs to, whatever its density."""
    rows, cols = problem.shape[0], prod(problem.shape[1:])
    return family(kind_of(problem.window), problem.block, problem.dtype, problem.positions, rows, cols)


@lru_cache(maxsize=256)
def kind_of(window: Window) -> str:
    """The kind of a layer: "linear", or "conv2d 3x3/2x2" by kernel and stride."""
    kernel, stride = ("x".join(map(str, sides)) for sides in (window.kernel, window.stride))
    return "linear" if window.linear else f"conv2d {kernel}/{stride}"
