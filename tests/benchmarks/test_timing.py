"""Steps run in turn, and samples become quartiles."""

from __future__ import annotations

import gc

import pytest
from timing import command, interleaved, machine, parts, summarise


def test_steps_run_in_turn():
    ran = []
    timings = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(ran) == "abc" * 4
    assert list(timings) == list("abc")


def test_warm_up_is_not_recorded(monkeypatch):
    clock = iter([0, 100, 200, 201, 300, 302, 400, 403])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timing = interleaved({"a": lambda: None}, rounds=3, warmup=1)["a"]
    assert (timing.minimum, timing.median) == (1, 2)


def test_garbage_collection_comes_back_after_a_failure():
    def fail():
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        interleaved({"a": fail}, rounds=1)
    assert gc.isenabled()


def test_summary_of_samples():
    timing = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.minimum, timing.q1, timing.median, timing.q3) == (1, 2, 3, 4)
    assert timing.spread == pytest.approx(1 / 3)


def test_the_machine_is_named():
    about = machine()
    assert {"cpu", "cores", "isa", "threads", "torch", "spfde", "date"} <= about.keys()
    assert about["cpu"] and about["cores"] >= about["usable_cores"] >= 1


def test_the_command_can_be_pasted(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks/layers.py", "--layers", "conv 3x3"])
    assert command() == "python benchmarks/layers.py --layers 'conv 3x3'"


def test_parts_of_an_option():
    assert parts(" conv 3x3, b512 ,") == ["conv 3x3", "b512"]
