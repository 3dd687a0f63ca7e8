"""What the CUDA C++ kernels are called with (csrc/module/cuda_arguments.h)."""

from __future__ import annotations

from collections.abc import Sequence

from spfde.kernels.problem import Problem
from spfde.sparse.tiles import Tiles


def conv2d_shape(size: Sequence[int], problem: Problem) -> list[int]:
    """A convolution's `Conv2dShape` (csrc/include/spfde/conv2d.h) for inputs of a size."""
    window = problem.window
    top, _, left, _ = window.padding
    return [
        *size,
        problem.shape[0],
        *problem.size,
        *window.kernel,
        *window.stride,
        top,
        left,
        *window.dilation,
        window.groups,
    ]


def tile_fields(tiles: Tiles) -> list[int]:
    """The fields of a `Tiles` (csrc/include/spfde/tiles.h)."""
    lists = (tiles.entry, tiles.work, tiles.split)
    return [tiles.together, *(number for each in lists for number in (each.data_ptr(), len(each)))]
