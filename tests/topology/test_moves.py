"""What updates are made of: schedules, selection, random choice, exact shares."""

from itertools import combinations

import pytest
import torch

from spfde.topology.moves import drawn, highest, share
from spfde.topology.schedule import cosine, cubic


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_random_growth_draws_every_set_alike(count):
    """Positions 0 2 3 5 6 are free; counts of 2000 draws within five standard deviations of what is even."""
    sets = list(combinations([0, 2, 3, 5, 6], count))
    generator, kept = torch.Generator().manual_seed(0), torch.tensor([1, 4])
    draws = [
        tuple(drawn(torch.zeros(7, dtype=torch.int64), kept, torch.tensor([count]), generator).tolist())
        for _ in range(2000)
    ]
    share = 1 / len(sets)
    for wanted in sets:
        assert abs(draws.count(wanted) - 2000 * share) <= 5 * (2000 * share * (1 - share)) ** 0.5


def test_schedules():
    assert [round(cosine(s, 0.4, 8), 6) for s in (0, 4, 8, 9)] == [0.4, 0.2, 0.0, 0.0]
    assert cosine(10, 0.5, 10, 0.005) == 0.005
    assert [cubic(s, 2, 6) for s in (0, 2, 4, 6, 7)] == [1, 1, 0.125, 0, 0]


def test_highest_in_slabs_is_highest_at_once():
    score = torch.tensor([1.0, 3, 3, 0, 5, 3, 2, 3])
    kept, whole = torch.tensor([4]), torch.zeros(8, dtype=torch.int64)
    slabs = [(0, score[:3]), (3, score[3:6]), (6, score[6:])]
    for given in (slabs, [(0, score)]):
        best, scores = highest(given, whole, kept, torch.tensor([3]))
        assert (best.tolist(), scores.tolist()) == ([1, 2, 5], [3, 3, 3])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert highest(slabs, group, kept, torch.tensor([1, 2, 0]))[0].tolist() == [1, 3, 5]


def test_shares_are_exact_and_within_limits():
    assert share(4, {"a": 3.0, "b": 1.0}, {"a": 9, "b": 9}) == {"a": 3, "b": 1}
    assert share(4, {"a": 3.0, "b": 1.0}, {"a": 1, "b": 9}) == {"a": 1, "b": 3}
    assert share(3, {"a": 1.0, "b": 1.0}, {"a": 9, "b": 9}) == {"a": 2, "b": 1}
    assert share(2, {"a": 0.0, "b": 0.0}, {"a": 1, "b": 1}) == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="expected room for 3, got 2"):
        share(3, {"a": 1.0}, {"a": 2})
