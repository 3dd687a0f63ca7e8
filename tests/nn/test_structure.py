"""Patterns by name, the grid of blocks against loops, and masks that violate a pattern."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spfde.sparse.pattern import Grid, Pattern

NAMES = ["unstructured", "block:4x1", "block:16x8", "2:4", "1:16", "fan-in", "channel"]


@pytest.mark.parametrize("name", NAMES)
def test_names_round_trip(name):
    assert str(Pattern.parse(name)) == name


@pytest.mark.parametrize(
    "name", ["", "block", "block:4", "block:0x1", "block:4x-1", "block:4x1 ", "4:2", "4:4", "0:4", "fanin", 7, None]
)
def test_other_names_are_refused_with_the_forms(name):
    with pytest.raises(ValueError, match=r"expected pattern 'unstructured', 'block:RxC'.*'n:m'.*'fan-in'.*got"):
        Pattern.parse(name)


GRIDS = st.builds(
    Grid,
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 6]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)


@given(GRIDS)
def test_blocks_are_consecutive_outputs_and_channels_at_one_tap(grid):
    weight = torch.arange(1, grid.weights + 1).view(grid.outputs, grid.channels, grid.taps)
    height, width = grid.block
    cut, places = grid.cut(weight), grid.places(torch.arange(grid.size))
    assert cut.shape == places.shape == (grid.size, height, width)
    for position in range(grid.size):
        row, column = divmod(position, grid.shape[1])
        strip, tap = divmod(column, grid.taps)
        for r in range(height):
            for c in range(width):
                output, channel = row * height + r, strip * width + c
                inside = output < grid.outputs and channel < grid.channels
                assert int(cut[position, r, c]) == (int(weight[output, channel, tap]) if inside else 0)
                assert int(places[position, r, c]) == (int(cut[position, r, c]) - 1 if inside else grid.weights)
    assert grid.ragged == bool((places == grid.weights).any())


def test_grids_of_layers():
    assert Pattern.parse("block:4x2").grid((8, 6, 3, 3)).shape == (2, 27)
    assert Pattern.parse("channel").grid((8, 6, 3, 3)) == Grid(8, 54, 1, (1, 54))
    assert Pattern.parse("2:4").grid((8, 6, 3, 3)) == Pattern.parse("fan-in").grid((8, 6, 3, 3)) == Grid(8, 6, 9)
    with pytest.raises(ValueError, match=r"expected outputs per group to be a multiple of 4.*got 3, try 'block:1x2'"):
        Pattern.parse("block:4x2").grid((6, 2, 3, 3), groups=2)


@pytest.mark.parametrize("name", ["unstructured", "2:4", "3:5", "fan-in", "block:2x3", "channel"])
@given(st.integers(1, 7), st.integers(1, 11), st.sampled_from([1, 4]), st.data())
def test_groups_cut_the_positions_and_quotas_fill_them(name, outputs, channels, taps, data):
    rule = Pattern.parse(name)
    grid = rule.grid((outputs, channels, taps))
    count = data.draw(st.integers(0, grid.size))
    group, quota = rule.groups(grid), rule.quota(grid, count)
    size = torch.bincount(group, minlength=quota.numel())
    assert size.numel() == quota.numel()
    assert bool((quota <= size).all())
    if name == "fan-in":
        assert (size == channels * taps).all()
        assert int(quota.max()) - int(quota.min()) <= 1
        assert bool((quota.diff() <= 0).all())
    if rule.kind == "n:m":
        n, m = rule.numbers
        first = group.view(outputs, channels, taps)
        for i in range(channels):
            assert bool((first[:, i] == first[:, i // m * m]).all())
        assert int(size.max()) <= m
        assert torch.equal(quota, size.clamp(max=n))
    else:
        assert int(quota.sum()) == count


def mask(rows, *kept):
    out = torch.zeros(rows, 8, dtype=torch.bool)
    for row, column in kept:
        out[row, column] = True
    return out


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("block:2x2", mask(4, (2, 4), (2, 5), (3, 4)), "got 3 of 4 .*outputs 2 to 3, inputs 4 to 5"),
        ("block:3x1", mask(4, (0, 1), (1, 1), (2, 1), (3, 2), (1, 7)), "got 1 of 3 .*outputs 0 to 2, inputs 7,"),
        ("channel", mask(3, *[(1, c) for c in range(7)]), "got 7 of 8 weights kept in output 1,"),
        ("2:4", mask(2, (0, 0), (0, 1), (1, 4), (1, 5), (1, 7)), "at most 2 .*outputs 1, inputs 4 to 7 .*got 3"),
        ("fan-in", mask(3, (0, 0), (0, 1), (1, 1), (2, 0)), None),
        ("fan-in", mask(3, (0, 0), (1, 1), (2, 0), (2, 1)), "2 stored weights in output 0 .*got 1,"),
        ("fan-in", mask(2, (0, 0), (0, 1), (0, 2), (1, 0)), "2 stored weights in output 0 .*got 3"),
    ],
)  # fmt: skip
def test_masks_that_violate_a_pattern(name, bad, words):
    rule = Pattern.parse(name)
    grid = rule.grid(tuple(bad.shape))
    if words is None:
        assert torch.equal(rule.positions(bad, grid), bad.view(-1).nonzero().view(-1))
        return
    with pytest.raises(ValueError, match=f"expected .*{words}.*try"):
        rule.positions(bad, grid)


def test_the_first_bad_place_of_a_convolution_names_its_tap():
    bad = torch.zeros(4, 8, 3, 3, dtype=torch.bool)
    bad[1, 5, 1, 2] = True
    with pytest.raises(ValueError, match="got 1 of 8 weights kept in outputs 0 to 3, inputs 4 to 5, tap 5, try"):
        rule = Pattern.parse("block:4x2")
        rule.positions(bad, rule.grid(tuple(bad.shape)))
