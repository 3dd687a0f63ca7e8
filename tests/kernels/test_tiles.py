"""The tiles GPU kernels walk: every block once, nothing else, in shapes that depend on the capacity alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels.problems import build

from spfde.kernels.registry import index_for, unpacked
from spfde.kernels.triton.index import tile_index, tiles_of
from spfde.sparse.tiles import LONG, SHORT, Tiles, build_tiles, stack_of


@st.composite
def masks(draw):
    rows, cols = draw(st.integers(1, 40)), draw(st.integers(1, 90))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    mask = torch.rand(rows, cols, generator=generator) < draw(st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]))
    if draw(st.booleans()):
        mask[draw(st.integers(0, rows - 1))] = True  # a long row
    return mask


def build_from(mask, together, stack, dead=0):
    places = mask.reshape(-1).nonzero().view(-1)
    padded = torch.nn.functional.pad(places, (0, dead))
    live = torch.arange(padded.numel()) < places.numel()
    slot = torch.arange(padded.numel()).flip(0)  # any order
    row, col = padded // mask.shape[1], padded % mask.shape[1]
    return build_tiles(row, col, slot, live, tuple(mask.shape), together, stack), row, col, slot, live


@given(masks(), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_every_block_once_and_in_its_place(mask, together, stack, dead):
    tiles, row, col, slot, live = build_from(mask, together, stack, dead)
    assert tiles.entry.dtype == tiles.work.dtype == tiles.split.dtype == torch.int32
    assert tiles.together == together
    found = {}
    for column, group, *slots in tiles.entry.tolist():
        for i, which in enumerate(slots):
            if which >= 0:
                assert which not in found
                found[which] = (group * together + i, column)
    blocks = zip(row[live].tolist(), col[live].tolist(), strict=True)
    assert found == dict(zip(slot[live].tolist(), blocks, strict=True))


@given(masks(), st.sampled_from([1, 4]), st.sampled_from([1, 4]))
def test_groups_fill_whole_chunks_columns_ascending(mask, together, stack):
    tiles, *_ = build_from(mask, together, stack)
    groups = -(-mask.shape[0] // together)
    owner = tiles.entry[:, 1].view(-1, stack)
    assert bool((owner == owner[:, :1]).all())
    owner = owner[:, 0].tolist()
    used = [group for group in owner if group >= 0]
    assert used == sorted(used) == owner[: len(used)]
    assert set(used) == set(range(groups))  # at least one chunk each: the bias gradient is its work
    for group in range(groups):
        entry = tiles.entry[tiles.entry[:, 1] == group]
        stored = (entry[:, 2:] >= 0).any(1)
        columns = entry[stored, 0]
        assert bool((columns.diff() > 0).all())
        assert not bool(stored[len(columns) :].any())  # what is filled up comes last
        want = mask[group * together : (group + 1) * together].any(0).nonzero().view(-1)
        assert torch.equal(columns.long(), want)


@given(masks(), st.sampled_from([1, 2]), st.sampled_from([1, 4]))
def test_work_covers_every_entry_once_longest_first(mask, together, stack):
    tiles, *_ = build_from(mask, together, stack)
    groups, capacity = -(-mask.shape[0] // together), int(mask.sum())
    items = [item for item in tiles.work.tolist() if item[0] >= 0]
    assert {item[0] for item in items} == set(range(groups))
    lengths = [last - first for _, first, last, _ in items]
    assert lengths == sorted(lengths, reverse=True)
    covered = [e for _, first, last, _ in items for e in range(first, last)]
    stored = (tiles.entry[:, 2:] >= 0).any(1).nonzero().view(-1).tolist()
    assert sorted(covered) == stored
    assert all((tiles.entry[first:last, 1] == group).all() for group, first, last, _ in items)
    limit = max(SHORT, LONG * -(-capacity // groups)) + stack - 1
    assert max(lengths) <= limit
    cut = {group: (first, last) for group, first, last in tiles.split.tolist() if group >= 0}
    places = {group: [] for group in cut}
    for group, _, _, place in items:
        assert (place >= 0) == (group in cut)
        if place >= 0:
            places[group].append(place)
    everything = sorted(place for found in places.values() for place in found)
    assert everything == list(range(len(everything)))
    assert len(everything) <= tiles.scratch
    assert all(sorted(places[group]) == list(range(*cut[group])) for group in cut)


def test_long_rows_are_cut():
    mask = torch.zeros(40, 300, dtype=torch.bool)
    mask[:, 0] = mask[3] = True
    tiles, *_ = build_from(mask, 1, 1)
    assert tiles.split[:, 0].tolist().count(3) == 1
    assert int((tiles.work[:, 0] == 3).sum()) == 5  # 300 entries by at most 72
    assert tiles.split.shape[0] == 339 // 72


@pytest.mark.parametrize("pattern", ["block:16x32", "unstructured", "block:4x1"])
def test_shapes_do_not_depend_on_where_the_weights_are(pattern):
    shapes = set()
    for seed in range(4):
        plan, _ = build((100, 200), None, 0.2, 0, seed, pattern)
        fixed, _ = build((100, 200), None, 0.2, 60 - plan.nnz if pattern == "block:16x32" else 0, seed, pattern)
        shapes.add(tuple(t.shape for tiles in tiles_of(fixed) for t in tiles))
    assert len(shapes) == 1


def test_a_plan_builds_its_tiles_when_triton_is_asked_for_and_keeps_them():
    plan, _ = build((64, 64), None, 0.5, 1, 0, "block:16x16")
    for kernel in ("auto", "native"):
        assert index_for(plan, kernel)[:6] == plan.kernel_index
    for kernel in ("dense", "reference"):
        assert index_for(plan, kernel) is plan.kernel_index
    assert set(plan.derived) == {"native"}
    units = tile_index(plan)
    assert units[:6] == plan.kernel_index
    assert all(a is b for a, b in zip(tile_index(plan), units, strict=True))
    assert isinstance(units.tiles, Tiles)
    assert unpacked(list(units)) == units
    assert unpacked(list(plan.kernel_index)) == plan.kernel_index


def test_the_transposed_tiles_are_those_of_the_transposed_mask():
    plan, _ = build((96, 160), None, 0.3, 2, 0, "block:16x32")
    _, t_tiles = tiles_of(plan)
    slots = t_tiles.entry[:, 2:]
    for column, group, *found in t_tiles.entry[(slots >= 0).any(1)].tolist():
        for i, slot in enumerate(found):
            if slot >= 0:
                assert int(plan.positions[slot]) == column * 5 + group * t_tiles.together + i


def test_blocks_fill_a_chunk():
    assert [stack_of(width) for width in (16, 32, 64, 128)] == [8, 4, 2, 1]
