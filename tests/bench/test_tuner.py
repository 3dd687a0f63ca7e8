"""The tuner of the GPU table, by a clock that knows the fastest: no GPU, no kernel."""

import json

import pytest
import torch

from spfde.kernels.dispatch.problem import STEPS
from spfde.kernels.triton.config import GPUS
from spfde.kernels.triton.model import together_of
from spfde.kernels.triton.table import OPS, GpuTable, Key, key_of
from spfde.tuning import tuner
from spfde.tuning.layer import Layer
from spfde.tuning.timing import Budget
from spfde.tuning.tuner import BUCKETS, Refused, fill, first_win, measure, problem_of, same

H200 = GPUS["NVIDIA H200"]
ABOUT = {"spfde": "0.1.0", "torch": "2.11.0", "triton": "3.6.0", "date": "2026-01-02", "command": "spfde bench --tune"}
LINEAR = Layer((1024, 768), 64, pattern="block:128x128", dtype="bfloat16")
CONV = Layer((32, 64, 3, 3), 2, 5, "block:16x32", "tf32")
SMALL = Layer((256, 256), 64, pattern="block:16x16", dtype="float16")


class FakeClock:
    """One of each op's launches takes a second and the others two; the kernels win up to a density.

    best, fails: places of the fastest and of one that fails among the launches of an op. broken: parts or kernels.
    """

    def __init__(self, best=3, break_even=0.3, fails=None, broken=()):
        self.best, self.break_even, self.fails, self.broken = best, break_even, fails, broken
        self.asked, self.failed, self.fastest = [], [], {}

    def __call__(self, calls):
        self.asked += calls
        return {way: self.time(i, way) for i, way in enumerate(calls)}

    def time(self, place, way):
        if {way.how, way.part} & {*self.broken}:
            return "OutOfResources: out of resource"
        if way.part == "step":
            return 1.0 if (way.how == "triton") == (way.density <= self.break_even) else 2.0
        if place == self.fails:
            self.failed.append(way)
            return "OutOfResources: out of resource"
        if place == self.best:
            self.fastest.setdefault(way.part, set()).add(way.how)
        return 1.0 if place == self.best else 2.0

    @property
    def steps(self):
        return [way.density for way in self.asked if way.how == "triton"]


def tuned(path, layers, clock=None, seconds=1e9, gpu=H200, about=ABOUT, say=lambda line: None):
    return fill(path, layers, gpu, about, clock or FakeClock(), Budget(seconds, lambda: 0.0), say, device="cpu")


def test_the_fastest_launches_and_the_break_even_are_found():
    clock = FakeClock(break_even=0.3)
    measured, refused = measure(LINEAR, H200, clock, "cpu")
    assert refused == {}
    for op in OPS:
        launches = getattr(measured, op)
        assert launches and set(launches.values()) == clock.fastest[op]
    tried = sorted(2 ** (-bucket / STEPS) for bucket in BUCKETS)
    assert measured.break_even in clock.steps
    assert measured.break_even <= 0.3 < min(density for density in clock.steps if density > measured.break_even)
    assert len(clock.steps) <= 5 < len(tried)


@pytest.mark.parametrize("break_even", [0.0, 1.0])
def test_kernels_that_always_or_never_win(break_even):
    measured, _ = measure(LINEAR, H200, FakeClock(break_even=break_even), "cpu")
    assert measured.break_even == break_even


@pytest.mark.parametrize("wins_from", [*BUCKETS, None])
def test_the_search_finds_the_first_win_in_five_measurements(wins_from):
    asked = []

    def wins(bucket):
        asked.append(bucket)
        return wins_from is not None and bucket >= wins_from

    assert first_win(wins) == wins_from
    assert len(asked) <= 5


def test_launches_are_kept_for_the_rows_that_share_a_program():
    clock = FakeClock(break_even=0.0)
    measured, _ = measure(SMALL, H200, clock, "cpu")
    visited = {16 * together_of(16, 16, density) for density in clock.steps}
    assert len(visited) > 1  # otherwise nothing is tested here
    assert set(measured.forward) == set(measured.input_grad) == set(measured.weight_grad) == visited
    asked = [way for way in clock.asked if way.part != "step"]
    assert len({(way.part, way.density) for way in asked}) == 3 * len(visited)  # once each


def test_a_launch_that_fails_is_passed_over_with_its_reason():
    clock = FakeClock(best=2, fails=2)
    measured, refused = measure(LINEAR, H200, clock, "cpu")
    assert {way.part for way in clock.failed} == {*OPS}
    told = "OutOfResources: out of resource"
    assert refused == {f"{way.part} {tuple(way.how)}": told for way in clock.failed}
    for way in clock.failed:
        assert way.how not in getattr(measured, way.part).values()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (("weight_grad",), "no launch of weight_grad runs: OutOfResources"),
        (("step",), "a step of kernel 'triton' does not run: OutOfResources"),
        (("dense",), "a step of kernel 'dense' does not run: OutOfResources"),
    ],
)
def test_a_layer_that_cannot_be_measured_is_passed_over(tmp_path, broken, told):
    with pytest.raises(Refused, match=told):
        measure(LINEAR, H200, FakeClock(broken=broken), "cpu")
    outcome = tuned(tmp_path / "t.json", [LINEAR], FakeClock(broken=broken))
    assert outcome.refused[str(LINEAR)].startswith(told)
    assert outcome.table.entries == {} and not (tmp_path / "t.json").exists()


def test_the_file_holds_exactly_what_was_found(tmp_path):
    path, said = tmp_path / "t.json", []
    outcome = tuned(path, [LINEAR, CONV], FakeClock(), say=said.append)
    assert GpuTable.load(path) == outcome.table
    assert outcome.table.about == ABOUT
    assert list(outcome.table.entries) == [
        Key("NVIDIA H200", "linear", (128, 128), "bfloat16", (7, 11, 10)),
        Key("NVIDIA H200", "conv2d 3x3/1x1", (16, 32), "float32", (6, 6, 10)),
    ]
    conv = outcome.table.entries[key_of(H200, problem_of(CONV), torch.float32)]
    for op, side in zip(OPS, (16, 32, 16), strict=True):
        assert getattr(conv, op) and all(outputs % side == 0 for outputs in getattr(conv, op))
    assert said == [
        f"{layer}: break-even at density {found.break_even:.2f}"
        for layer, found in zip((LINEAR, CONV), outcome.table.entries.values(), strict=True)
    ]
    assert (outcome.refused, outcome.unfinished) == ({}, ())


def test_time_that_runs_out_loses_nothing_and_another_run_goes_on(tmp_path):
    path, now = tmp_path / "t.json", [0.0]

    class Slow(FakeClock):
        def __call__(self, calls):
            now[0] += 1.0
            return super().__call__(calls)

    first = fill(path, [LINEAR, CONV, SMALL], H200, ABOUT, Slow(), Budget(12, lambda: now[0]), device="cpu")
    assert len(first.table.entries) == 1
    assert first.unfinished == [str(CONV), str(SMALL)]
    assert GpuTable.load(path) == first.table
    clock, said = FakeClock(break_even=0.9), []
    later = {**ABOUT, "date": "2027-01-01", "command": "another"}
    second = tuned(path, [LINEAR, CONV, SMALL], clock, about=later, say=said.append)
    assert said[0] == f"{LINEAR}: known"
    assert [key.layout for key in second.table.entries] == ["linear", "conv2d 3x3/1x1", "linear"]
    assert first.table.entries.items() <= second.table.entries.items()
    assert second.table.about == ABOUT


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    class Interrupted(FakeClock):
        def __call__(self, calls):
            if any(way.part == "weight_grad" for way in calls) and len(self.asked) > 60:
                raise KeyboardInterrupt
            return super().__call__(calls)

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "t.json", [LINEAR, CONV, SMALL], Interrupted())
    assert 1 <= len(GpuTable.load(tmp_path / "t.json").entries) < 3


def test_layers_of_one_bucket_are_measured_once(tmp_path):
    twin = Layer((1025, 768), 64, pattern="block:128x128", dtype="bfloat16")
    outcome = tuned(tmp_path / "t.json", [LINEAR, twin])
    assert len(outcome.table.entries) == 1


@pytest.mark.parametrize(
    ("gpu", "about", "told"),
    [
        (GPUS["Orin"], ABOUT, "expected .*t.json to be measured with gpu Orin, got gpu NVIDIA H200, try another file"),
        (H200, {**ABOUT, "torch": "2.13.0"}, "measured with torch 2.13.0, got torch 2.11.0, try another file"),
        (H200, {**ABOUT, "triton": "3.9"}, "measured with triton 3.9, got triton 3.6.0, try another file"),
    ],
)
def test_a_file_of_another_gpu_or_version_is_refused_and_stays(tmp_path, gpu, about, told):
    path = tmp_path / "t.json"
    tuned(path, [LINEAR])
    before = path.read_text()
    with pytest.raises(ValueError, match=told):
        tuned(path, [CONV], gpu=gpu, about=about)
    assert path.read_text() == before


def test_a_damaged_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"gpu": "x"}))
    with pytest.raises(ValueError, match=r"t\.json: expected the file to be"):
        tuned(path, [LINEAR])
    assert path.read_text() == json.dumps({"gpu": "x"})


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (
            Layer((64, 64), 8, dtype="tf32"),
            "expected a pattern block:RxC .* got 'unstructured', try --pattern block:64x64",
        ),
        (Layer((64, 64), 8, pattern="block:8x16", dtype="tf32"), "got 'block:8x16'"),
        (
            Layer((64, 64), 8, pattern="block:16x16"),
            "expected tf32, .* got float32, try --dtype tf32",
        ),
    ],
)
def test_layers_without_launches_are_refused_before_anything_runs(tmp_path, layer, told):
    clock = FakeClock()
    with pytest.raises(ValueError, match=told):
        tuned(tmp_path / "t.json", [LINEAR, layer], clock)
    assert clock.asked == [] and not (tmp_path / "t.json").exists()


def test_the_clock_passes_over_what_fails_or_computes_something_else(monkeypatch):
    def medians(calls, rounds, device):
        assert (rounds, device) == (7, "cuda")
        return dict.fromkeys(calls, 1.0)

    def fail():
        raise RuntimeError("no\n room")

    monkeypatch.setattr(tuner.timing, "medians", medians)
    right, wrong = torch.ones(3), torch.tensor([1.0, 1.0, 0.0])
    found = tuner.gpu_clock(7)({"a": fail, "b": lambda: right, "c": lambda: wrong, "d": lambda: right * 1.001})
    assert found == {"a": "RuntimeError: no room", "b": 1.0, "c": "another result than the first", "d": 1.0}


def test_results_agree_in_all_parts():
    one = (torch.ones(3), torch.zeros(2))
    assert same(one, one) and same(one[1], one[1])
    assert not same(one, (torch.ones(3), torch.ones(2)))
    assert not same((torch.full((3,), float("nan")), one[1]), one)
