import time

import pytest

from spfde.kernels import clock


@clock.timed
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_only_kernels_inside_the_block_count():
    work(0.01)
    start = time.perf_counter()
    with clock.measure() as measured:
        time.sleep(0.02)
        assert work(0.01) == 0.01
    total, seconds = time.perf_counter() - start, measured.seconds
    work(0.01)
    assert 0.01 <= measured.seconds == seconds <= total - 0.02


def test_nested_clocks_stop_on_their_own():
    with clock.measure() as outer:
        with clock.measure() as inner:
            pass
        work(0.01)
    assert inner.seconds == 0 < outer.seconds


def test_a_kernel_called_by_another_counts_once():
    @clock.timed
    def outer():
        work(0.02)

    start = time.perf_counter()
    with clock.measure() as measured:
        outer()
        work(0.01)
    assert 0.03 <= measured.seconds <= time.perf_counter() - start


def test_a_kernel_that_raises_counts_and_its_clock_stops():
    @clock.timed
    def fail():
        time.sleep(0.01)
        raise KeyError

    with clock.measure() as measured, pytest.raises(KeyError):
        fail()
    assert measured.seconds >= 0.01
    assert not clock.running
