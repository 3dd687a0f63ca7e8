"""Counts per layer and selection by scores: literal values and exact totals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spfde import sparsify
from spfde.topology.allocation import erk, stored_count, uniform
from spfde.topology.topk import keep_globally, keep_highest, keep_highest_in_groups

SHAPES = {"a": (16, 3, 3, 3), "b": (64, 32, 3, 3), "c": (10, 64)}


@pytest.mark.parametrize(
    ("sparsity", "size", "count"),
    [(0.9, 100, 10), (0.99, 10, 1), (1.0, 10, 0), (0.0, 7, 7), (0.5, 0, 0), (0.25, 10, 8)],
)
def test_stored_count(sparsity, size, count):
    assert stored_count(sparsity, size) == count


def test_uniform():
    assert uniform(SHAPES, 0.9) == {"a": 43, "b": 1843, "c": 64}


def test_erk_by_hand():
    """Raw densities 25/432, 102/18432, 74/640: at 80% the scale is (0.2 * 19504 - 432 - 640) / 102 for b alone."""
    assert erk(SHAPES, 0.8) == {"a": 432, "b": round(0.2 * 19504) - 1072, "c": 640}
    scale = 0.01 * 19504 / (25 + 102 + 74)
    assert erk(SHAPES, 0.99) == {"a": round(25 * scale), "b": round(102 * scale), "c": round(74 * scale)}


@given(st.floats(0, 1), st.dictionaries(st.text("abc", min_size=1), st.tuples(st.integers(1, 40), st.integers(1, 40)),
                                        min_size=1))  # fmt: skip
def test_counts_are_possible_and_close_to_the_sparsity(sparsity, shapes):
    total = sum(a * b for a, b in shapes.values())
    for counts in (uniform(shapes, sparsity), erk(shapes, sparsity)):
        for name, (a, b) in shapes.items():
            assert (0 if sparsity == 1 else 1) <= counts[name] <= a * b
        assert abs(sum(counts.values()) - (1 - sparsity) * total) <= 1.5 * len(shapes)


def test_highest_scores_win_and_ties_go_to_the_lower_position():
    assert keep_highest(torch.tensor([1.0, 3, 2, 3, 1]), 3).tolist() == [1, 2, 3]
    assert keep_highest(torch.tensor([1.0, 1, 1, 1]), 2).tolist() == [0, 1]
    assert keep_highest(torch.tensor([1.0]), 0).tolist() == []
    assert keep_highest(torch.tensor([0.0, 1]), 5).tolist() == [0, 1]
    special = torch.tensor([-torch.inf, 1, torch.nan, torch.inf, -torch.inf])
    assert [keep_highest(special, n).tolist() for n in (1, 2, 3, 4)] == [[2], [2, 3], [1, 2, 3], [0, 1, 2, 3]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 45),
       st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64]))  # fmt: skip
def test_keeping_the_highest_is_a_stable_sort(entries, count, dtype):
    wanted = sorted(sorted(range(len(entries)), key=lambda i: (-entries[i], i))[:count])
    assert keep_highest(torch.tensor(entries, dtype=dtype), count).tolist() == wanted


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30), st.lists(
    st.integers(0, 4), min_size=1, max_size=4))  # fmt: skip
def test_every_group_keeps_its_own_highest(entries, quota):
    group, score = (torch.tensor([min(e[0], len(quota) - 1) for e in entries]), torch.tensor([e[1] for e in entries]))
    expected = []
    for g, count in enumerate(quota):
        members = [i for i in range(len(entries)) if int(group[i]) == g]
        expected += sorted(members, key=lambda i: (-int(score[i]), i))[:count]
    assert keep_highest_in_groups(score, group, torch.tensor(quota)).tolist() == sorted(expected)


def test_counts_in_blocks():
    blocks = {"a": 10, "b": 101, "c": 3}
    assert uniform(SHAPES, 0.8, blocks) == {"a": 2, "b": 20, "c": 1}
    scale = 0.01 * 19504 / (25 + 102 + 74)
    density = {"a": 25 * scale / 432, "b": 102 * scale / 18432, "c": 74 * scale / 640}
    assert erk(SHAPES, 0.99, blocks) == {name: max(1, round(density[name] * blocks[name])) for name in blocks}


def test_global_counts_are_exact_and_leave_no_layer_empty():
    scores = {"big": torch.arange(100.0) + 10, "small": torch.zeros(5)}
    assert keep_globally(scores, 20) == {"big": 19, "small": 1}
    assert keep_globally(scores, 0) == {"big": 0, "small": 0}
    assert keep_globally(scores, 105) == {"big": 100, "small": 5}


def test_random_masks_follow_the_seed():
    masks = [sparsify(torch.nn.Linear(30, 30), 0.9, seed=seed).mask() for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert all(int(mask.sum()) == 90 for mask in masks)
