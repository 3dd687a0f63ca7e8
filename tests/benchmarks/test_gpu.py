"""The GPU benchmark's parts that need no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu import layers, networks, run
from gpu.cases import BLOCKS, DENSITIES, LINEAR, NETWORKS, OCCUPIED, RESNET, TARGETS, Case, Network, cases
from gpu.clock import Budget
from gpu.layers import Absent
from gpu.record import Cell, Record, line
from torch import nn

CASE = Case("linear", "bfloat16", 8, 32, 48, 16, 0.5)
CONV = Case("conv2d", "tf32", 2, 32, 32, 16, 0.5, 5, 2)
CLUSTERED = Case("clustered", "tf32", 8, 128, 192, 64, 0.5)
SMALL = Network("small", 2, 16, 0.5)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")

ABOUT = {"gpu": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture(autouse=True)
def flags():
    """What float32 products may round to is afterwards as it was before."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


@pytest.fixture
def no_triton(monkeypatch):
    """Without a GPU the masked product stands for the kernel, and the CPU's clock for the device's."""
    monkeypatch.setitem(layers.KERNELS, "spfde", "dense")
    monkeypatch.setattr(run, "interleaved", interleaved_on_cpu)


def interleaved_on_cpu(calls, rounds):
    for call in calls.values():
        call()
    times = {name: [1.0] * rounds for name in calls}
    return times, times


def cell(case: Case = CASE, **ways: list[float]) -> Cell:
    device = {name.replace("_", " "): {"forward": times} for name, times in ways.items()}
    return Cell(case, device, device, {"torch 2:4": "no such thing"})


def test_every_case_is_run_once_those_of_targets_first():
    names = [str(case) for case in cases()]
    asked = list(dict.fromkeys(target.case for target in TARGETS))
    more = [Case("linear", "bfloat16", 16384, 4096, 4096, *at) for at in ((64, 0.3), (16, 0.15))]
    full = 2 * len(BLOCKS) * (len(LINEAR) * len(DENSITIES) + len(RESNET))
    assert len(names) == len(set(names)) == full + len(more) + len(NETWORKS) + len(OCCUPIED)
    assert cases()[: len(asked)] == asked and len(asked) == 13
    assert names[0] == "linear 4096x4096 b16384 bfloat16 block 64 density 0.1"
    assert {str(case) for case in more} <= set(names[: len(asked)])


def test_names_say_what_is_special():
    assert str(CONV) == "conv 3x3/2 32x32 5px b2 tf32 block 16 density 0.5"
    assert str(CLUSTERED) == "linear 128x192 b8 tf32 unstructured, 0.5 of the tiles 0.2 full"
    assert str(SMALL) == "small b2 autocast block 16 density 0.5"


def test_a_convolution_counts_its_output_pixels():
    assert CONV.positions == 2 * 3 * 3
    assert CONV.flops == 2 * 2 * 3 * 3 * 32 * 32 * 9
    assert CASE.flops == 2 * 8 * 32 * 48


def test_peers_are_asked_for_what_they_have():
    assert CONV.ways == ("spfde", "spfde masked", "cudnn channels_last", "cudnn contiguous")
    assert CASE.ways == ("spfde", "spfde masked", "cublas", "torch bsr")
    assert CLUSTERED.ways == ("spfde", "spfde masked", "cublas")
    assert "torch 2:4" in replace(CASE, block=64, density=0.1).ways
    assert "torch 2:4" not in replace(CASE, block=64, density=0.1, dtype="tf32").ways


def test_a_budget_runs_out():
    now = iter([10.0, 12.0, 12.0, 25.0])
    budget = Budget(5, lambda: next(now))
    assert budget.left == 3
    assert not budget.allows(3)
    assert budget.left == 0


def test_speedup_is_over_the_fastest_dense_way():
    some = cell(spfde=[1.0, 2.0, 3.0], cublas=[4.0, 5.0, 6.0], torch_bsr=[1.0])
    assert some.speedup("forward") == 2.5
    assert some.speedup("forward", "torch bsr") == 5
    assert some.speedup("step") is None
    assert some.speedup("frozen prefix", over="forward") is None
    assert line(some).endswith("forward 2.50x  [no torch 2:4: no such thing]")
    assert line(cell()).endswith("nothing timed  [no torch 2:4: no such thing]")


def test_a_part_may_be_measured_against_another():
    device = {"spfde": {"frozen prefix": [2.0]}, "cublas": {"frozen prefix": [3.0], "step": [9.0]}}
    some = Cell(CASE, device, {})
    assert (some.speedup("frozen prefix"), some.speedup("frozen prefix", over="step")) == (1.5, 4.5)


def test_a_line_warns_where_the_cpu_takes_longer():
    device, host = {"spfde": {"step": [2.0], "forward": [1.0]}}, {"spfde": {"step": [3.0], "forward": [0.5]}}
    some = Cell(CASE, device, host)
    assert some.launch_bound == {"step": 1.5}
    assert line(some).endswith("[launch bound: step, host 1.5 x device]")
    assert Cell(CASE, device, {}).launch_bound == {}


def test_a_line_says_where_auto_is_not_the_fastest():
    device = {"spfde": {"step": [2.0]}, "spfde masked": {"step": [5.0]}, "cublas": {"step": [4.0]}}
    wrong = Cell(CASE, device, {}, auto="spfde masked")
    assert wrong.missed == 2.5
    assert line(wrong).endswith("[auto takes spfde masked: 2.50 x the time of our fastest]")
    right = Cell(CASE, device, {}, auto="spfde")
    assert right.missed == 1 and "auto" not in line(right)
    assert Cell(CASE, device, {}).missed is None


def test_a_record_survives_its_file_and_is_named_after_gpu_and_date(tmp_path):
    cells = [cell(spfde=[1.0], cublas=[2.0]), Cell(SMALL, {}, {}, {}, {"spfde": "broken"}, "spfde auto", "2 of 2")]
    before = Record(ABOUT, cells, ["another"])
    path = before.write(tmp_path / "new")
    assert path.name == "nvidia-h200-2026-01-02.json"
    assert Record.read(path) == before
    assert list(path.parent.iterdir()) == [path]
    assert before.failures == [(cells[1], "spfde", "broken")]


def run_for(seconds: float, each: float, folder: Path, lost: int = 0, before: Sequence[Cell] = ()) -> Record:
    """Three cases that take `each` seconds on a clock of their own; the device is lost in the one with batch `lost`."""
    now = [0.0]

    def timed(case: Case) -> Cell:
        now[0] += each
        return replace(cell(case, spfde=[1.0]), failed={"spfde": "lost"} if case.batch == lost else {})

    chosen = [replace(CASE, batch=batch) for batch in (1, 2, 3)]
    record = Record(ABOUT, [*before])
    record, path = run.run(chosen, Budget(seconds, lambda: now[0]), record, folder, timed, lambda: False)
    assert Record.read(path) == record
    return record


def test_a_run_stops_before_its_time_is_up_and_names_what_is_missing(tmp_path):
    done = run_for(25, 10, tmp_path)
    assert [c.case.batch for c in done.cells] == [1, 2]
    assert done.unfinished == [str(replace(CASE, batch=3))]
    assert run_for(100, 10, tmp_path).unfinished == []
    assert len(run_for(0, 10, tmp_path).cells) == 0


def test_a_run_ends_with_its_device_and_keeps_what_came_before(tmp_path):
    done = run_for(100, 10, tmp_path, lost=2, before=[cell(CONV)])
    assert [c.case for c in done.cells] == [CONV, replace(CASE, batch=1), replace(CASE, batch=2)]
    assert done.unfinished == [str(replace(CASE, batch=3))]


@pytest.mark.parametrize("case", [CASE, CONV, CLUSTERED], ids=["linear", "conv2d", "clustered"])
def test_ways_compute_the_same_layer_part_by_part(case, no_triton):
    given = layers.problem(case, "cpu")
    dense = layers.calls(given, "cudnn contiguous" if case.kind == "conv2d" else "cublas")
    ours = layers.calls(given, "spfde")
    assert list(ours) == list(dense) == list(layers.PARTS)
    for part in ours:
        got, want = ours[part](), dense[part]()
        assert len(got) == len(want) == (2 if part == "step" else 1)
        if part in ("weight gradient", "step"):
            assert got[-1].numel() == given.mask.sum()
        if part != "weight gradient":
            torch.testing.assert_close(got[0], want[0], atol=0.1, rtol=0.1)
    assert torch.equal(ours["step"]()[0], ours["frozen step"]()[0])
    assert not ours["frozen prefix"]()[0].requires_grad


def test_a_clustered_mask_fills_some_tiles_in_part():
    mask = layers.problem(CLUSTERED, "cpu").mask
    tiles = mask.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).float().mean((1, 3)).flatten()
    assert (tiles > 0).sum() == tiles.numel() * CLUSTERED.density
    assert 0.15 < tiles[tiles > 0].mean() < 0.25


def test_ways_keep_their_memory_format():
    given = layers.problem(CONV, "cpu")
    formats = [way.removeprefix("cudnn ") for way in CONV.ways if way.startswith("cudnn")]
    assert formats == ["channels_last", "contiguous"]
    results = [layers.calls(given, f"cudnn {name}")["forward"]()[0] for name in formats]
    assert [y.is_contiguous() for y in results] == [False, True]


@pytest.mark.parametrize("name", ["y", "dx", "dweight"])
def test_a_wrong_result_of_any_part_is_refused(name, no_triton):
    given = layers.problem(CASE, "cpu")
    wrong = replace(given, **{name: getattr(given, name).roll(1, 0)})
    part = {"y": "forward", "dx": "input gradient", "dweight": "weight gradient"}[name]
    with pytest.raises(ValueError, match=f"wrong {part}: relative error"):
        layers.calls(wrong, "spfde")


def test_a_peer_that_torch_has_not_here_is_absent_one_that_breaks_otherwise_is_not(monkeypatch):
    given = layers.problem(CASE, "cpu")
    with pytest.raises(Absent, match="."):
        layers.calls(replace(given, y=given.y + 1), "torch bsr")
    monkeypatch.setattr(layers, "_forward_alone", lambda given, way: given.no_such_name)
    with pytest.raises(AttributeError):
        layers.calls(given, "torch bsr")


@pytest.fixture
def small_network(monkeypatch):
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    monkeypatch.setitem(networks.MODELS, "small", make)
    monkeypatch.setattr(networks, "PIXELS", 8)
    return networks.problem(SMALL, "cpu")


def test_a_network_is_timed_as_it_is_trained(small_network):
    parts = networks.calls(small_network, "spfde auto")
    assert list(parts) == ["step", "half frozen step", "frozen forward"]
    losses = [float(parts["step"]()) for _ in range(3)]
    assert losses[2] < losses[0]
    assert not parts["frozen forward"]().requires_grad
    assert networks.chosen(small_network)[0] == "spfde auto"
    assert networks.chosen(small_network)[1].endswith("of 1 sparse layers run a sparse kernel")
    with pytest.raises(ValueError, match="Triton runs on CPU tensors only in its interpreter"):
        networks.calls(small_network, "spfde")


def test_the_front_half_of_a_network_is_frozen(small_network, monkeypatch):
    models = []
    monkeypatch.setattr(networks, "_step", lambda model, given: models.append(model) or (lambda: torch.zeros(())))
    networks.calls(small_network, "dense")
    _, half = sorted(models, key=lambda model: not model[0][0].weight.requires_grad)
    assert [p.requires_grad for p in half.parameters()] == [False] * 4 + [True] * 6


def test_a_network_that_blows_up_is_refused(small_network):
    with pytest.raises(ValueError, match="expected a finite result of the step, got others"):
        networks.calls(replace(small_network, x=small_network.x * float("nan")), "dense")


def test_a_case_is_measured_whatever_breaks(no_triton, monkeypatch, capfd):
    whole = run.measure(CASE, 2, "cpu")
    assert list(whole.device) == ["spfde", "spfde masked", "cublas", "torch bsr"][: len(whole.device)]
    assert all(list(whole.device[way]) == list(layers.PARTS) for way in ("spfde", "spfde masked", "cublas"))
    assert not whole.failed and whole.reason.startswith("predicted")
    monkeypatch.setitem(layers.KERNELS, "spfde", "triton")
    broken = run.measure(CASE, 2, "cpu")
    assert list(broken.failed) == ["spfde"] and "spfde" not in broken.device and "cublas" in broken.device
    assert broken.failed["spfde"].startswith("ValueError: expected Triton to run for kernel 'triton'")
    assert "FAILED spfde: ValueError" in line(broken)
    assert "Traceback" in capfd.readouterr().err
    monkeypatch.setattr(layers, "chosen", lambda given: 1 / 0)
    monkeypatch.setattr(run, "interleaved", lambda calls, rounds: {}["no clock"])
    assert set(run.measure(CASE, 2, "cpu").failed) == {"spfde", "auto", *layers.PARTS}
    monkeypatch.setattr(layers, "problem", lambda case, device: 1 / 0)
    assert run.measure(CASE, 2, "cpu").failed == {"all of it": "ZeroDivisionError: division by zero"}


def test_a_network_is_measured_like_a_layer(no_triton, small_network):
    some = run.measure(SMALL, 1, "cpu")
    assert list(some.device) == ["spfde auto", "dense"] and list(some.failed) == ["spfde"]
    assert some.speedup("half frozen step", "spfde auto") == 1


@pytest.fixture
def main_on_cpu(no_triton, monkeypatch):
    """Arguments for gpu.run, on a machine that answers as if there were a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(run, "machine", lambda: dict(ABOUT))
    monkeypatch.setattr(run, "cases", lambda: [replace(CASE, batch=batch) for batch in (1, 2)])
    measure = run.measure
    monkeypatch.setattr(run, "measure", lambda case, rounds: measure(case, rounds, "cpu"))


def test_a_run_writes_a_record(main_on_cpu, tmp_path, capsys):
    run.main(["--rounds", "1", "--out", str(tmp_path), "--seconds", "100"])
    [path] = tmp_path.glob("*.json")
    record = Record.read(path)
    assert [c.case.batch for c in record.cells] == [1, 2] and "after" in record.machine
    assert capsys.readouterr().out.splitlines()[-1] == f"2 cases: {path}"


def test_failures_end_a_run_with_an_error(main_on_cpu, monkeypatch, tmp_path):
    monkeypatch.setitem(layers.KERNELS, "spfde", "triton")
    with pytest.raises(SystemExit, match="2 failures, see above"):
        run.main(["--rounds", "1", "--out", str(tmp_path), "--seconds", "100"])
    assert len(Record.read(next(tmp_path.glob("*.json"))).cells) == 2


def test_a_lost_device_is_left_to_a_new_process_which_goes_on(main_on_cpu, monkeypatch, tmp_path):
    def lost() -> None:
        raise RuntimeError("an illegal memory access")

    class Replaced(Exception):
        pass

    def execv(path: str, arguments: list[str]) -> None:
        raise Replaced(*arguments)

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setitem(layers.KERNELS, "spfde", "triton")
    with pytest.raises(Replaced) as replaced:
        run.main(["--rounds", "1", "--out", str(tmp_path), "--seconds", "100"])
    python, flag, module, *rest = replaced.value.args
    assert (python, flag, module) == (sys.executable, "-m", "gpu.run")
    [path] = tmp_path.glob("*.json")
    assert len(Record.read(path).cells) == 1
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(SystemExit, match="2 failures"):
        run.main(rest)
    assert [c.case.batch for c in Record.read(path).cells] == [1, 2]


def test_nothing_runs_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="expected a CUDA device, got none"):
        run.main([])
    script = Path(run.__file__).with_name("run.sh")
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == ("spfde: expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA")


def test_a_filter_that_matches_nothing_is_refused():
    assert [case.block for case in run.select(["conv", "14px", "256x256", "tf32"])] == [64, 128, 32, 16]
    with pytest.raises(SystemExit, match="got conv 9x9"):
        run.select(["conv 9x9"])
