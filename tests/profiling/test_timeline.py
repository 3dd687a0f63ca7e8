"""The clock behind a profile: every instant has one bucket, and the cost of looking is taken off."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfde.kernels.clock import Clock
from spfde.profiling.timeline import PYTHON, Bucket, Timeline, without_overhead

OUTER, INNER = Bucket("forward", "", "", "Python"), Bucket("forward", "conv", "Conv2d", "dense products")


class Time:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_innermost_bucket_counts():
    time = Time()
    timeline = Timeline(Clock(), time)
    timeline.start()
    with timeline.within(OUTER):
        time.now += 1
        with timeline.within(INNER):
            time.now += 10
        time.now += 100
    assert timeline.seconds == {OUTER: 101, INNER: 10}
    assert timeline.stops == {OUTER: 2, INNER: 1}
    assert timeline.innermost is None


def test_nothing_counts_while_stopped_or_outside():
    time = Time()
    timeline = Timeline(Clock(), time)
    timeline.start()
    time.now += 5
    with timeline.within(OUTER):
        timeline.stop()
        time.now += 7
        timeline.start()
        time.now += 1
    assert timeline.seconds == {OUTER: 1}


def test_around_a_kernel_is_python():
    time, kernels = Time(), Clock()
    timeline = Timeline(kernels, time)
    timeline.start()
    with timeline.within(INNER):
        kernels.seconds += 4
        time.now += 6
    with timeline.within(INNER):  # no kernel of ours: all of it is the layer's kind
        time.now += 8
    assert timeline.seconds == {INNER: 12, INNER._replace(kind=PYTHON): 2}


def test_a_bucket_is_left_when_its_block_raises():
    timeline = Timeline(Clock(), itertools.count().__next__)
    timeline.start()
    with pytest.raises(KeyError), timeline.within(OUTER), timeline.within(INNER):
        raise KeyError
    assert timeline.innermost is None


buckets = st.dictionaries(
    st.integers(0, 8).map(lambda i: OUTER._replace(layer=str(i))),
    st.tuples(st.floats(0, 10), st.integers(1, 50)),
    min_size=1,
)


@given(buckets, st.floats(0, 30))
def test_what_looking_cost_is_taken_off(found, whole):
    seconds = {bucket: taken for bucket, (taken, _) in found.items()}
    stops = {bucket: count for bucket, (_, count) in found.items()}
    rest = without_overhead(seconds, stops, whole)
    assert rest.keys() == seconds.keys()
    assert all(-1e-9 <= rest[bucket] <= seconds[bucket] for bucket in seconds)
    assert sum(rest.values()) == pytest.approx(min(whole, sum(seconds.values())), abs=1e-9)


def test_it_is_taken_off_evenly_per_stop():
    a, b, c = (OUTER._replace(layer=name) for name in "abc")
    assert without_overhead({a: 10.0, b: 10.0, c: 1.0}, {a: 1, b: 3, c: 0}, 17.0) == {a: 9.0, b: 7.0, c: 1.0}
    # c has less than its share: the others bear the rest
    assert without_overhead({a: 10.0, c: 1.0}, {a: 1, c: 1}, 5.0) == {a: 5.0, c: 0.0}
