"""Joules of a span, and the state of a machine in it."""

from dataclasses import replace

import pytest

from spfde.energy.rails import Rails
from spfde.energy.sampling import Channel
from spfde.energy.series import Series, draw, joules, state

POWER, COUNTER = Channel("VDD_IN", "W"), Channel("package-0", "J", wraps=100.0)


def test_power_is_integrated():
    assert joules(Series(POWER, [0, 1, 2, 3], [5, 5, 5, 5]), 0.5, 2.5) == pytest.approx(10)
    assert joules(Series(POWER, [0, 1, 2, 3], [0, 2, 4, 6]), 0.5, 2.5) == pytest.approx(6)  # of 2 t
    assert joules(Series(POWER, [1, 2], [4, 4]), 0, 3) == pytest.approx(12)


def test_counters_are_subtracted_also_when_they_start_again():
    assert joules(Series(COUNTER, [0, 1, 2, 3], [10, 20, 30, 40]), 0.5, 2.5) == pytest.approx(20)
    assert joules(Series(COUNTER, [0, 1, 2, 3], [80, 95, 10, 25]), 0, 3) == pytest.approx(45)


@pytest.mark.parametrize("times", [[], [1.0], [0.0, 5.0]])
def test_too_few_samples_are_not_zero_joules(times):
    assert joules(Series(POWER, times, [1.0] * len(times)), 0.9, 2) is None


def test_a_draw_by_rail_and_in_total():
    parts = [POWER._replace(name=name) for name in ("A", "B")]
    found = [Series(channel, [0, 1, 2], [watts] * 3) for channel, watts in zip(parts, (2, 3), strict=True)]
    drawn = draw(found, Rails(tuple(parts), ("A", "B"), ""), 0, 2)
    assert (drawn.rails, drawn.total, drawn.watts, drawn.why) == ({"A": 4, "B": 6}, 10, 5, "")
    alone = draw([found[0], replace(found[1], times=[], values=[])], Rails(tuple(parts), ("A", "B"), ""), 0, 2)
    assert alone.total is None
    assert "B" in alone.why
    missing = draw([], Rails((), (), "", {"RAPL": "no counter"}), 0, 2)
    assert (missing.total, missing.why) == (None, "RAPL: no counter")


def series(name, unit, values):
    return Series(Channel(name, unit), list(range(len(values))), values)


def test_a_steady_machine():
    found = [
        series("GPU clock", "Hz", [6e8] * 9),
        series("gpu-thermal", "C", [40, 45, 50, 52, 53, 53, 54, 54, 55]),
        series("memory available", "B", [9, 8, 4, 7, 8, 8, 8, 8, 8]),
        series("throttle events oc1_event_cnt", "1", [3] * 9),
        series("throttled", "1", [1] * 9),  # idle: no fault
    ]
    seen = state(found, 0, 8)
    assert seen.temperatures == {"gpu-thermal": (40, 55)}
    assert seen.clocks == {"GPU clock": (6e8, 6e8)}
    assert (seen.slowed, seen.memory_left) == ((), 4)


@pytest.mark.parametrize(
    ("name", "unit", "values", "said"),
    [
        ("GPU clock", "Hz", [6e8, 6e8, 6e8, 5e8, 5e8, 4e8, 4e8, 4e8, 4e8], "from 600 to 400 MHz"),
        ("CPU clock 0", "Hz", [2e9, 2e9, 1e9, 1e9, 1e9, 1e9], "CPU clock 0 fell"),
        ("throttle events oc1_event_cnt", "1", [3, 3, 3, 5], "rose by 2"),
        ("throttled", "1", [0, 0, 0x40, 0], "power or heat"),
    ],
)
def test_what_slows_a_machine_is_told(name, unit, values, said):
    [reason] = state([series(name, unit, values)], 0, len(values) - 1).slowed
    assert said in reason
