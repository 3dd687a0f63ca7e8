from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfde.train.stats import CATEGORIES, Stopwatch


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@given(st.lists(st.tuples(st.sampled_from(CATEGORIES), st.integers(0, 1000), st.integers(0, 1000))))
def test_the_parts_make_up_the_total(laps):
    clock = Clock()
    watch = Stopwatch(clock)
    expected = dict.fromkeys(CATEGORIES, 0.0)
    for category, before, inside in laps:
        clock.now += before
        with watch(category):
            clock.now += inside
        expected["other"] += before
        expected[category] += inside
    assert watch.seconds() == expected
    assert sum(watch.seconds().values()) == clock.now - 100


def test_it_goes_on_from_the_seconds_that_it_is_given():
    clock = Clock()
    watch = Stopwatch(clock, {"data": 5.0})
    with watch("data"):
        clock.now += 2
    assert watch.seconds() == {**dict.fromkeys(CATEGORIES, 0.0), "data": 7.0}


def test_an_inner_block_takes_its_time_from_the_outer_one():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch("step"):
        clock.now += 1
        with watch("data"):
            clock.now += 2
        clock.now += 4
    seconds = watch.seconds()
    assert (seconds["step"], seconds["data"], seconds["other"]) == (5, 2, 0)


def test_a_block_that_raises_is_closed():
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(KeyError), watch("evaluation"):
        clock.now += 3
        raise KeyError
    clock.now += 1
    assert (watch.seconds()["evaluation"], watch.seconds()["other"]) == (3, 1)


def test_moving_never_takes_more_than_there_is():
    watch = Stopwatch(count().__next__)
    with watch("step"):
        pass
    watch.move("step", "kernels", 0.25)
    assert (watch.seconds()["step"], watch.seconds()["kernels"]) == (0.75, 0.25)
    watch.move("step", "kernels", 10)
    assert (watch.seconds()["step"], watch.seconds()["kernels"]) == (0, 1)


def test_an_unknown_category_is_refused_and_counts_nothing():
    watch = Stopwatch(Clock())
    with pytest.raises(ValueError, match="expected one of kernels, .*, got 'lunch'"), watch("lunch"):
        pass
    assert set(watch.seconds()) == set(CATEGORIES)
