"""Timing in turn, without looking at the times; and time limits."""

import gc

import pytest
import torch

from spfde.tuning import timing


class Event:
    """CUDA's, by a clock that ticks at each record."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 4.0
        self.at = Event.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_every_round_runs_every_call_once_after_the_warm_up():
    ran, collecting = [], []
    calls = {name: lambda name=name: (ran.append(name), collecting.append(gc.isenabled())) for name in "ab"}
    seconds = timing.interleaved(calls, 3)
    assert ran == list("ab") * (timing.WARMUP + 3)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert not any(collecting) and gc.isenabled()
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_collection_stays_as_it_was_even_when_a_call_fails():
    def fail():
        raise RuntimeError("failed")

    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(RuntimeError, match="failed"):
                timing.on_cpu({"a": fail}, 1)
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_a_gpu_is_timed_by_its_events_out_of_a_cold_cache(monkeypatch):
    log = []
    empty = torch.empty

    class Flush:
        def zero_(self):
            log.append("flush")

    def allocate(size, **options):
        if options.get("device") != "cuda":
            return empty(size, **options)
        log.append(f"{size} bytes")
        return Flush()

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: type("Facts", (), {"L2_cache_size": 50}))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    calls = {"a": lambda: log.append("a"), "b": lambda: log.append("b")}
    device, host = timing.on_gpu(calls, 2)
    each = ["sleep", "flush", "a", "sleep", "flush", "b", "wait"]
    assert log == ["100 bytes", *"a" * timing.WARMUP, *"b" * timing.WARMUP, *each, *each]
    assert device == {"a": [pytest.approx(4e-3)] * 2, "b": [pytest.approx(4e-3)] * 2}
    assert {name: len(times) for name, times in host.items()} == {"a": 2, "b": 2}
    assert timing.medians(calls, 2, "cuda") == {"a": pytest.approx(4e-3), "b": pytest.approx(4e-3)}


def test_medians(monkeypatch):
    monkeypatch.setattr(timing, "on_cpu", lambda calls, rounds, clock: {"a": [3.0, 1.0, 8.0]})
    assert timing.medians({"a": None}, 3) == {"a": 3.0}


def test_a_time_limit_runs_out():
    now = iter([10.0, 12.0, 12.0, 25.0])
    limit = timing.TimeLimit(5, lambda: next(now))
    assert limit.left == 3
    assert not limit.allows(3)
    assert limit.left == 0
