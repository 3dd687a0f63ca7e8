"""The order in which the native kernels visit the weights of a linear layer."""

from math import prod

import pytest
import torch

from spfde._native import native
from spfde.kernels.panel_order import NativeIndex, native_index, orders_of
from spfde.kernels.registry import get
from spfde.sparse.kernel_index import Window
from spfde.sparse.plan import build_plan, index_from_positions


def random_plan(rows, cols, density, seed=0):
    nnz = int(rows * cols * density)
    positions = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))[:nnz].sort().values
    return build_plan(index_from_positions(positions, rows, cols, nnz + 3), (rows, cols))


def visited(order, rows, cols):
    """(row, panel, offset, slot) of every weight in turn; longer visits of a panel come first."""
    shares, panels = native().panel_cut(rows, cols, order.slot.numel(), 1)
    share, k = -(-rows // shares), 0
    for s in range(shares):
        count = min(rows, (s + 1) * share) - s * share
        for p in range(panels):
            assert int(order.start[s * panels + p]) == k
            begin = s * share * panels + p * count
            visits = order.visits[begin : begin + count]
            lengths = (visits >> 16).tolist()
            assert lengths == sorted(lengths, reverse=True)
            for row, weights in zip((visits & 0xFFFF).tolist(), lengths, strict=True):
                yield from (
                    (s * share + row, p, int(order.offset[j]), int(order.slot[j])) for j in range(k, k + weights)
                )
                k += weights
    assert int(order.start[-1]) == k


@pytest.mark.parametrize(("rows", "cols", "density"), [(300, 700, 0.02), (300, 700, 0.2), (1, 5, 1.0), (513, 40, 0.1)])
def test_every_weight_is_visited_once_in_the_order_of_its_row(rows, cols, density):
    plan = random_plan(rows, cols, density)
    positions = plan.positions.tolist()
    for turned, order in enumerate(orders_of(plan)):
        seen = list(visited(order, *((cols, rows) if turned else (rows, cols))))
        assert sorted(slot for *_, slot in seen) == list(range(plan.nnz))
        last, widths = {}, set()
        for row, panel, offset, slot in seen:
            place = divmod(positions[slot], cols)
            mine, across = place[::-1] if turned else place
            assert mine == row
            widths |= {(across - offset) / panel} if panel else set()
            assert last.get(row, -1) < across  # a row's sum has one order, whatever the shares
            last[row] = across
        assert len(widths) <= 1


@pytest.mark.parametrize(
    ("window", "pointwise"), [(Window(), True), (Window(stride=(2, 2)), False), (Window((3, 3)), False)]
)
def test_convolutions_have_an_order_where_they_are_pointwise(window, pointwise):
    cols = 50 * prod(window.kernel)
    index = index_from_positions(torch.arange(0, 20 * cols, 3), 20, cols, 20 * cols)
    plan = build_plan(index, (20, 50, *window.kernel), window)
    found = get("native").index(plan)
    assert isinstance(found, NativeIndex) is pointwise
    if pointwise:
        linear = build_plan(index, (20, 50))
        assert all(map(torch.equal, found, native_index(linear)))


def test_a_move_writes_the_orders_over_in_place():
    plan, other = (random_plan(300, 200, 0.1, seed) for seed in (0, 1))
    before = [part.data_ptr() for part in native_index(plan)]
    plan.update_(other)
    moved = native_index(plan)
    assert [part.data_ptr() for part in moved] == before
    assert all(map(torch.equal, moved, native_index(other)))
