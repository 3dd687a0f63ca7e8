"""How kernels are launched on sizes that no test could compute: what CUDA and 32 bits can count."""

import pytest
import torch

from spfde.kernels.epilogue import Epilogue
from spfde.kernels.triton.index import TileIndex, tile_index
from spfde.sparse.pattern import Grid
from spfde.sparse.plan import build_plan, index_from_positions

pytest.importorskip("triton")

from spfde.kernels.triton import config, sddmm, spmm

GRID = (2**31 - 1, 65535, 65535)  # programs along each axis


@pytest.fixture
def launches(monkeypatch):
    """What is launched: the kernel's name, its grid, and its arguments by name. Nothing runs."""
    made = []

    def launch(kernel, grid, *args, config, **constants):
        made.append((kernel.fn.__name__, grid, dict(zip(kernel.arg_names, args, strict=False))))
        assert all(side <= most for side, most in zip(grid, GRID, strict=False)), grid
        assert all(-(2**31) <= arg < 2**31 for arg in args if isinstance(arg, int)), args

    monkeypatch.setattr(spmm, "launch", launch)
    monkeypatch.setattr(sddmm, "launch", launch)
    return made


def units(rows: int, cols: int) -> TileIndex:
    """Blocks of 128x128: a full first row, which is cut where it is long, and the first column."""
    grid = Grid(rows, cols, 1, (128, 128))
    high, wide = grid.shape
    positions = torch.cat([torch.arange(wide), torch.arange(high) * wide]).unique()
    index = index_from_positions(positions, high, wide, len(positions))
    return tile_index(build_plan(index, (rows, cols), grid=grid))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("batch", "rows", "cols"), [(16384, 2048, 131072), (5_000_000, 2048, 16384), (1, 128, 128)])
def test_grids_and_integers_fit(batch, rows, cols, launches):
    index = units(rows, cols)
    values = meta(index.places.numel() // 128**2, 128, 128)
    x, dy = meta(batch, cols), meta(batch, rows)
    assert spmm.forward(x, values, Epilogue(residual=meta(batch, rows)), index, rows).shape == (batch, rows)
    assert spmm.input_grad(dy, values, index, cols).shape == (batch, cols)
    assert sddmm.weight_grad(dy, x, index, (128, 128), True)[0].shape == values.shape
    cut = [args["split"].shape[0] for name, _, args in launches if name == "join_kernel"]
    assert max(cut) > 0 or cols == 128


def test_rows_far_apart_are_brought_together(launches):
    index, values = units(256, 256), meta(3, 128, 128)
    for stride, copied in ((2**22, False), (2**23 - 1, False), (2**23, True), (2**30, True)):
        x = torch.empty_strided((500, 256), (stride, 1), dtype=torch.bfloat16, device="meta")
        spmm.forward(x, values, Epilogue(), index, 256)
        read = launches[-2][2]
        assert (read["x"] is not x) == copied
        assert read["stride_x"] * config.MOST_TOKENS < 2**31
