"""Medians, ratios and when a machine is too noisy, on numbers made by hand."""

import random

import pytest

from spfde.tuning.samples import Ratio, noise, ratio, summarise


def test_a_timing_is_a_median_with_quartiles():
    timing = summarise([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (timing.median, timing.minimum, timing.q1, timing.q3) == (3.0, 1.0, 2.0, 4.0)
    assert timing.spread == pytest.approx(1 / 3)
    assert summarise([2.0]).spread == 0


def test_a_slow_moment_counts_in_both():
    slow = [1.0, 1.0, 10.0, 1.0, 3.0, 1.0]
    found = ratio([2 * s for s in slow], slow)
    assert found == Ratio(2.0, 2.0, 2.0) and found.doubt == 0


@pytest.mark.parametrize(("rounds", "low", "high"), [(3, 1, 3), (5, 1, 5), (6, 1, 6), (9, 2, 8), (15, 4, 12)])
def test_the_interval_is_that_of_the_sign_test(rounds, low, high):
    values = list(range(1, rounds + 1))
    random.Random(0).shuffle(values)
    found = ratio([float(v) for v in values], [1.0] * rounds)
    assert (found.low, found.high) == (low, high)


def test_the_interval_holds_the_median_as_often_as_it_says():
    draw = random.Random(1).lognormvariate
    held = sum(
        found.low <= 1 <= found.high
        for found in (ratio([draw(0, 0.1) for _ in range(9)], [1.0] * 9) for _ in range(2000))
    )
    assert 0.95 <= held / 2000 <= 0.97  # exactly 0.961


def test_ratios_differ_where_their_intervals_do_not_meet():
    assert Ratio(2, 1.9, 2.1).differs(Ratio(2.3, 2.2, 2.4)) and Ratio(2.3, 2.2, 2.4).differs(Ratio(2, 1.9, 2.1))
    assert not Ratio(2, 1.9, 2.2).differs(Ratio(2.3, 2.2, 2.4))


def test_a_noisy_machine_is_told():
    quiet, loud = Ratio(1, 0.98, 1.02), Ratio(1, 0.8, 1.2)
    assert noise([]) is None and noise([quiet, quiet, loud]) is None
    text = noise([quiet, loud, loud])
    assert "too noisy to tell 5% apart" in text and "20%" in text
    assert noise([loud], resolution=0.3) is None
