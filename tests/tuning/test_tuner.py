"""The tuner of GPU launches, by a clock that knows the fastest: no GPU, no kernel."""

from dataclasses import replace

import pytest
import torch

from spfde._machine import Machine
from spfde.kernels.dispatch.measurement import OPS, family_of
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS
from spfde.kernels.problem import STEPS
from spfde.kernels.triton import candidates
from spfde.kernels.triton.model import together_of
from spfde.tuning import measure as tuner
from spfde.tuning.layer import LayerSpec
from spfde.tuning.measure import Refused, same
from spfde.tuning.sweep import BUCKETS, around_break_even, fill, first_win
from spfde.tuning.timing import TimeLimit

H200 = GPUS["NVIDIA H200"]
MACHINE = Machine("0.1.0", "2.11.0", gpu=H200.name, triton="3.6.0")
LINEAR = LayerSpec((1024, 768), 64, pattern="block:128x128", dtype="bfloat16")
CONV = LayerSpec((32, 64, 3, 3), 2, 5, "block:16x32", "tf32")
SMALL = LayerSpec((256, 256), 64, pattern="block:16x16", dtype="float16")


@pytest.fixture(autouse=True)
def tf32(monkeypatch):
    """Torch's flag, which a CPU has not: without it float32 is exact and has no launches to choose among."""
    monkeypatch.setattr(candidates, "exact", lambda dtype, op: False)


class FakeClock:
    """One of each op's launches takes a second and the others two; the kernels win up to a density.

    best, fails: places of the fastest and of one that fails among the launches of an op. broken: parts or kernels.
    """

    def __init__(self, best=3, break_even=0.3, fails=None, broken=()):
        self.best, self.break_even, self.fails, self.broken = best, break_even, fails, broken
        self.asked, self.failed, self.fastest = [], [], {}

    def __call__(self, calls):
        self.asked += calls
        return {trial: self.time(i, trial) for i, trial in enumerate(calls)}

    def time(self, place, trial):
        if {trial.kernel if trial.op == "step" else None, trial.op} & {*self.broken}:
            return "OutOfResources: out of resource"
        if trial.op == "step":
            return 1.0 if (trial.kernel == "triton") == (trial.density <= self.break_even) else 2.0
        if place == self.fails:
            self.failed.append(trial)
            return "OutOfResources: out of resource"
        if place == self.best:
            self.fastest.setdefault(trial.op, set()).add(trial.launch)
        return 1.0 if place == self.best else 2.0

    @property
    def steps(self):
        return [trial.density for trial in self.asked if (trial.op, trial.kernel) == ("step", "triton")]


def tuned(path, layers, clock=None, limit=None, machine=MACHINE, say=lambda line: None):
    limit = limit or TimeLimit(1e9, lambda: 0.0)
    return fill(path, layers, machine, H200, clock or FakeClock(), limit, say, device="cpu")


def measured(layer, clock):
    return around_break_even(layer, Table(MACHINE, ()), H200, clock, "cpu")


def launches(entries, op):
    return {launch.outputs: launch.config for entry in entries for launch in entry.launches if launch.op == op}


def test_the_fastest_launches_and_the_break_even_are_found():
    clock = FakeClock(break_even=0.3)
    entries, refused = measured(LINEAR, clock)
    assert refused == {}
    for op in OPS:
        assert launches(entries, op) and set(launches(entries, op).values()) == clock.fastest[op]
    assert [entry.density for entry in entries] == clock.steps
    assert len(clock.steps) <= 5 < len(BUCKETS)
    table = Table(MACHINE, tuple(entries))
    decided = {b: found.kernel for b in BUCKETS if (found := table.measured(LINEAR.problem(b)))}
    assert len(decided) >= len(BUCKETS) - 1
    assert all((kernel == "triton") == (2 ** (-bucket / STEPS) <= 0.3) for bucket, kernel in decided.items())


@pytest.mark.parametrize("break_even", [0.0, 1.0])
def test_kernels_that_always_or_never_win(break_even):
    entries, _ = measured(LINEAR, FakeClock(break_even=break_even))
    assert {entry.kernel for entry in entries} == {"triton" if break_even else "dense"}
    assert Table(MACHINE, tuple(entries)).measured(LINEAR.problem(20)).kernel == entries[0].kernel


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
    entries, _ = measured(SMALL, clock)
    visited = {16 * together_of(16, 16, density) for density in clock.steps}
    assert len(visited) > 1  # otherwise nothing is tested here
    assert all(set(launches(entries, op)) == visited for op in OPS)
    asked = [trial for trial in clock.asked if trial.op != "step"]
    assert len({(trial.op, trial.density) for trial in asked}) == 3 * len(visited)  # once each


def test_a_launch_that_fails_is_passed_over_with_its_reason():
    clock = FakeClock(best=2, fails=2)
    entries, refused = measured(LINEAR, clock)
    assert {trial.op for trial in clock.failed} == {*OPS}
    assert refused.keys() == {f"{trial.op} {tuple(trial.launch)}" for trial in clock.failed}
    for trial in clock.failed:
        assert trial.launch not in launches(entries, trial.op).values()


@pytest.mark.parametrize("broken", ["weight_grad", "triton", "dense"])
def test_a_layer_that_cannot_be_measured_is_passed_over(tmp_path, broken):
    with pytest.raises(Refused, match=broken):
        measured(LINEAR, FakeClock(broken=(broken,)))
    outcome = tuned(tmp_path / "t.json", [LINEAR], FakeClock(broken=(broken,)))
    assert broken in outcome.refused[str(LINEAR)]
    assert outcome.table.entries == () and not (tmp_path / "t.json").exists()


def test_the_file_holds_exactly_what_was_found(tmp_path):
    path, said = tmp_path / "t.json", []
    outcome = tuned(path, [LINEAR, CONV], FakeClock(), say=said.append)
    assert Table.load(path, allow_other_machine=True) == outcome.table
    assert outcome.table.machine == MACHINE
    families = list(dict.fromkeys(family_of(entry.problem) for entry in outcome.table.entries))
    assert [(f.kind, f.block, f.dtype, f.sizes) for f in families] == [
        ("linear", (128, 128), "bfloat16", (7, 11, 10)),
        ("conv2d 3x3/1x1", (16, 32), "float32", (6, 6, 10)),
    ]
    conv = [entry for entry in outcome.table.entries if family_of(entry.problem) == families[1]]
    for op, side in zip(OPS, (16, 32, 16), strict=True):
        assert launches(conv, op) and all(outputs % side == 0 for outputs in launches(conv, op))
    assert len(said) == 2 and (outcome.refused, outcome.unfinished) == ({}, ())


def test_time_that_runs_out_loses_nothing_and_another_run_goes_on(tmp_path):
    path, now = tmp_path / "t.json", [0.0]

    class Slow(FakeClock):
        def __call__(self, calls):
            now[0] += 1.0
            return super().__call__(calls)

    first = tuned(path, [LINEAR, CONV, SMALL], Slow(), TimeLimit(12, lambda: now[0]))
    assert first.unfinished == [str(CONV), str(SMALL)]
    assert Table.load(path, allow_other_machine=True) == first.table
    clock, said = FakeClock(break_even=0.9), []
    twin = LayerSpec((1025, 768), 64, pattern="block:128x128", dtype="bfloat16")  # of the same family
    second = tuned(path, [LINEAR, twin, CONV, SMALL], clock, say=said.append)
    assert said[:2] == [f"{LINEAR}: known", f"{twin}: known"]
    assert second.table.entries[: len(first.table.entries)] == first.table.entries
    assert all(second.table.knows(layer.problem()) for layer in (LINEAR, CONV, SMALL))


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    class Interrupted(FakeClock):
        def __call__(self, calls):
            if any(trial.op == "weight_grad" for trial in calls) and len(self.asked) > 60:
                raise KeyboardInterrupt
            return super().__call__(calls)

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "t.json", [LINEAR, CONV, SMALL], Interrupted())
    kept = Table.load(tmp_path / "t.json", allow_other_machine=True)
    assert 1 <= len({family_of(entry.problem) for entry in kept.entries}) < 3


@pytest.mark.parametrize("field", ["gpu", "torch", "triton"])
def test_a_file_of_another_machine_is_refused_and_stays(tmp_path, field):
    path = tmp_path / "t.json"
    tuned(path, [LINEAR])
    before = path.read_text()
    with pytest.raises(ValueError, match=f"{field} other"):
        tuned(path, [CONV], machine=replace(MACHINE, **{field: "other"}))
    assert path.read_text() == before


def test_a_damaged_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"gpu": "x"}')
    with pytest.raises(ValueError, match=r"t\.json"):
        tuned(path, [LINEAR])
    assert path.read_text() == '{"gpu": "x"}'


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (LayerSpec((64, 64), 8, dtype="tf32"), "pattern"),
        (LayerSpec((64, 64), 8, pattern="block:8x16", dtype="tf32"), "pattern"),
        (LayerSpec((64, 64), 8, pattern="block:16x16"), "dtype"),
    ],
)
def test_layers_without_launches_are_refused_before_anything_runs(tmp_path, layer, named):
    clock = FakeClock()
    with pytest.raises(ValueError, match=named):
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
    found = tuner.checking_clock(7, "cuda")(
        {"a": fail, "b": lambda: right, "c": lambda: wrong, "d": lambda: right * 1.001}
    )
    assert found == {"a": "RuntimeError: no room", "b": 1.0, "c": "another result than the first", "d": 1.0}


def test_results_agree_in_all_parts():
    one = (torch.ones(3), torch.zeros(2))
    assert same(one, one) and same(one[1], one[1])
    assert not same(one, (torch.ones(3), torch.ones(2)))
    assert not same((torch.full((3,), float("nan")), one[1]), one)
