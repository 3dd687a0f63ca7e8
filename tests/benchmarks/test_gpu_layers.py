"""The GPU benchmark's ways and how a case is measured, on a CPU."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from benchmarks.gpu_cases import ABOUT, CASE, CLUSTERED, CONV, SMALL
from gpu import layers, networks, run
from gpu.layers import Absent
from gpu.record import Record, line
from torch import nn

import spfde

pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")


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


def test_two_of_four_keeps_half_of_a_row():
    weight = layers._two_of_four(torch.ones(3, 8))
    assert ((weight.view(3, 2, 4) != 0).sum(-1) == 2).all()


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
    for way in ("spfde", "spfde unfused"):
        with pytest.raises(ValueError, match="Triton runs on CPU tensors only in its interpreter"):
            networks.calls(small_network, way)


def test_the_unfused_network_runs_norm_and_activation_apart(small_network, monkeypatch):
    models = []
    monkeypatch.setattr(networks, "_step", lambda model, given: models.append(model) or (lambda: torch.zeros(())))
    monkeypatch.setattr(networks, "_run", lambda model, x: torch.zeros(()))
    for way, kind in (("spfde", spfde.nn.FusedNormAct2d), ("spfde unfused", nn.BatchNorm2d)):
        networks.calls(small_network, way)
        assert {type(model[0][1]) for model in models} == {kind}
        models.clear()


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
    assert {*whole.device, *whole.absent} == set(CASE.ways)
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
    assert list(some.device) == ["spfde auto", "dense"] and list(some.failed) == ["spfde", "spfde unfused"]
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
