"""Each program once, on something small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cache
import cases
import conv_norm
import fit_cost
import freezers
import freezing_plan
import freezing_weights
import layers
import measure
import memory
import networks
import overhead
import plot
import pytest
import scaling
import sieving
import smartfrz
import step
import sweep
import targets
import timing
import torch
import update
from benchmarks.records import ABOUT, cell, record
from cases import Case, Layer, conv, in_blocks
from record import Record
from torch import nn

from spfde.freezing.schemes import SCHEMES
from spfde.sieving import METHODS as SIEVES
from spfde.topology import METHODS
from spfde.tuning.samples import summarise
from spfde.tuning.timing import TimeLimit

ROOT = Path(__file__).parents[2]
SMALL = [Layer("linear", 8, (16, 32)), conv(2, (4, 8), 5, 3)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_layers_on_a_cpu_writes_what_plot_draws(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layers, "LAYERS", SMALL)
    monkeypatch.setattr(measure, "names", lambda case, device, compiled: ["dense", "native", "masked", "auto"])
    path = tmp_path / "deep" / "layers.json"
    layers.main(["--threads", "1", "--rounds", "1", "--sparsities", "0.8", "--json", str(path)])
    printed = capsys.readouterr().out
    assert str(SMALL[1]) in printed and "targets:" in printed
    kept = Record.read(path)
    assert [(c.layer, c.pattern) for c in kept.cells] == [(str(s), p) for s in SMALL for p in cases.PATTERNS]
    assert all(list(c.seconds) == ["dense", "native", "masked", "auto"] and not c.failed for c in kept.cells)
    plot.main([str(path)])
    assert path.with_suffix(".png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="--cases"):
        layers.main(["--cases", "no such layer"])


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "benchmarks" / "results").glob("amd*.json")])
def test_committed_records_can_be_drawn(name, tmp_path):
    plot.main([str(ROOT / "benchmarks" / "results" / name), str(tmp_path / "x.svg")])
    with pytest.raises(SystemExit, match="sparse kernel"):
        plot.draw(record(cell(dense=1)))


@pytest.fixture
def gpu(monkeypatch):
    """layers.py on a machine that answers as if there were a GPU; a CPU computes, without Triton."""
    cases = [in_blocks(Layer("linear", batch, (32, 32), bias=False), 16, 0.5, "bfloat16") for batch in (1, 2)]
    kept = {**ABOUT, "gpu": "NVIDIA H200"}
    for name, value in (("is_available", lambda: True), ("synchronize", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(layers, "machine", lambda device: dict(kept))
    monkeypatch.setattr(layers, "cases_of", lambda *options: cases)
    monkeypatch.setattr(measure, "names", lambda case, device, compiled: ["dense", "native"])
    run = measure.measure
    monkeypatch.setattr(measure, "measure", lambda case, rounds, device, wants: run(case, rounds, "cpu", wants))
    return monkeypatch


def test_layers_on_a_gpu_writes_what_targets_and_plot_read(gpu, tmp_path, capsys):
    path = tmp_path / timing.record_name({**ABOUT, "gpu": "NVIDIA H200"})
    assert path.name == "nvidia-h200-2026-01-02.json"
    layers.main(["--device", "cuda", "--rounds", "1", "--json", str(path), "--variants", "native", "--seconds", "100"])
    kept = Record.read(path)
    assert len(kept.cells) == 2 and not kept.unfinished and "after" in kept.machine
    targets.main([str(path)])
    assert "NVIDIA H200" in path.with_suffix(".md").read_text() and "training step" in capsys.readouterr().out
    plot.main([str(path)])


def test_a_lost_gpu_is_left_to_a_new_process_which_goes_on(gpu, tmp_path, capfd):
    def lost():
        raise RuntimeError("an illegal memory access")

    class Replaced(Exception):
        pass

    def execv(path, arguments):
        raise Replaced(*arguments)

    gpu.setattr(os, "execv", execv)
    gpu.setattr(torch.cuda, "synchronize", lost)
    gpu.setattr(measure, "names", lambda case, device, compiled: ["dense", "native", "no such peer"])
    path = tmp_path / "a.json"
    with pytest.raises(Replaced) as replaced:
        layers.main(["--device", "cuda", "--rounds", "1", "--seconds", "100", "--json", str(path)])
    _, program, *rest = replaced.value.args
    assert Path(program).name == "layers.py" and len(Record.read(path).cells) == 1
    gpu.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(SystemExit, match="2 failures"):
        layers.main(rest)
    assert len(Record.read(path).cells) == 2


def test_a_run_stops_before_its_time_is_up_and_names_what_is_missing(tmp_path):
    now = [0.0]

    def timed(case):
        now[0] += 4.0
        return cell(dense=1, native=1)

    some = [Case(SMALL[0], sparsity=s) for s in (0.5, 0.6, 0.7)]
    done = measure.run(some, TimeLimit(9, lambda: now[0]), record(), tmp_path / "a.json", timed)
    assert len(done.cells) == 2 and done.unfinished == [str(some[2])]
    assert Record.read(tmp_path / "a.json").unfinished == done.unfinished


def test_the_script_of_a_gpu_says_what_it_needs():
    run = subprocess.run(
        [ROOT / "benchmarks/gpu/run.sh"], env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "CUDA device" in run.stderr


def test_sweep_finds_each_distinct_layer_once_and_violators_worst_first(tmp_path, monkeypatch, capsys):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Flatten(2),
        nn.Linear(16, 5),
    )
    found = [
        Layer("conv", 6, (3, 8), 8, 3, 2, 1, bias=False),
        Layer("conv", 6, (8, 8), 4, 1, groups=2),
        Layer("linear", 48, (16, 5)),
    ]
    assert sweep.layers_of(model, 8, 6) == found
    with pytest.raises(ValueError, match="undilated"):
        sweep.layers_of(nn.Conv2d(3, 4, 3, dilation=2), 8, 1)
    path = tmp_path / "sweep.json"
    monkeypatch.setattr(sweep, "IMAGES", {"resnet20": 8, "no_such_net": 8})
    monkeypatch.setattr(sweep, "layers_of", lambda model, image, batch: found[:1])
    sweep.main(["--threads", "1", "--rounds", "1", "--both", "--json", str(path)])
    assert "no_such_net: absent" in capsys.readouterr().out
    assert all({"dense", "dense channels_last"} < c.seconds.keys() for c in Record.read(path).cells)
    slow = [
        cell(0.5, dense=10, **{kernel: ms})
        for kernel, ms in ((sweep.DENSE, 10.9), (sweep.NATIVE, 12), (sweep.DENSE, 20))
    ]
    large = [type(some)(**{**vars(some), "lanes": 64}) for some in slow]
    assert [line.split()[0] for line in sweep.report("net", large).splitlines()[2:]] == ["0.50x", "0.83x"]


def test_the_cost_model_is_fitted_to_a_record(tmp_path, capsys, monkeypatch):
    layer = cases.LINEAR[0]
    monkeypatch.setattr(fit_cost, "known", lambda: {str(layer): layer})
    cells = [cell(sparsity, dense=10, native=100 * (1 - sparsity)) for sparsity in (0.5, 0.8, 0.9, 0.95, 0.98)]
    cells = [type(some)(**{**vars(some), "layer": str(layer)}) for some in cells]
    record(*cells).write(tmp_path / "a.json")
    monkeypatch.setattr(sys, "argv", ["fit_cost.py", str(tmp_path / "a.json")])
    fit_cost.main()
    assert 'avx2: "linear": Cost(' in capsys.readouterr().out


def test_scaling_times_each_number_of_threads(monkeypatch, tmp_path, capsys):
    assert [scaling.counts(cores) for cores in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]
    monkeypatch.setattr(scaling, "ALL", SMALL)
    monkeypatch.setattr(measure, "names", lambda case, device, compiled: ["dense", "native"])
    path = tmp_path / "scaling.json"
    scaling.main(["--threads", "1,2", "--rounds", "1", "--layers", "linear", "--json", str(path)])
    assert [c.layer for c in Record.read(path).cells] == [f"{SMALL[0]} t1", f"{SMALL[0]} t2"]
    assert "native over dense" in capsys.readouterr().out


@pytest.mark.parametrize("route", overhead.ROUTES)
def test_parts_of_the_overhead_add_up(route):
    core, some = dict(vars(overhead.native())), overhead.measure(overhead.LAYERS[0], route, rounds=20)
    assert some.native + some.kernels + some.autograd + some.front == pytest.approx(some.total)
    assert some.dense + some.extra == pytest.approx(some.total)
    assert some.native > 0 and some.kernels > 0
    assert dict(vars(overhead.native())) == core  # its calls are its own again


def test_update_times_every_method_beside_what_is_asked(monkeypatch, capsys):
    def small():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 16),
            nn.Linear(16, 10),
        )  # fmt: skip

    monkeypatch.setattr(update, "network", small)
    monkeypatch.setattr(update, "BATCH", 2)
    monkeypatch.setattr(update, "SIZE", 8)
    update.main(["--threads", "1", "--rounds", "1"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(METHODS)
    # An update step of 5 beside steps of 2 takes 1.5 steps more: 1.5% of the training at one in a hundred.
    cost = update.Cost(*(summarise([seconds] * 3) for seconds in (2.0, 5.0)))
    assert (cost.update, cost.steps, cost.share(), cost.share(10)) == (3.0, 1.5, 0.015, 0.15)


def test_a_step_and_its_memory(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "small", networks.Network("resnet20", batch=2, size=8))
    monkeypatch.setattr(step, "DENSE", networks.EAGER)
    monkeypatch.setattr(step, "peak", lambda network, how, threads: 10)
    [row, *_] = [row for row in step.measure("small", [0.9], 1, 1) if row.case == networks.MEMORY_CASE]
    assert row.speedup > 0 and 0 < row.memory < 1 and "small" in step.line(row)
    assert memory.allocated("small", "contiguous") == row.peaks["contiguous"]  # alike in every run
    assert memory.share({"contiguous": 8, "channels_last": 4, "sparse": 3}) == 0.75


def test_sieving_measures_every_method(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sieving, "training_step", lambda model: lambda: None)
    sieving.main(["--samples", "3000", "--threads", "1", "--rounds", "2", "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["method"] for row in record["rows"]] == list(SIEVES) and "cpu" in record["machine"]
    assert all(row["state_mb"] > 0 and row["boundary_s"] > 0 for row in record["rows"])
    _, *printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(SIEVES)


def test_freezing_weights_measures_every_share(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(freezing_weights, "LAYERS", {"tiny": (lambda: nn.Linear(32, 64, bias=False), (4, 32))})
    freezing_weights.main(["--rounds", "2", "--threads", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["layers"]["tiny"]
    assert list(rows) == ["1", "0.5", "0.25", "0.1"] and rows["1"]["trained"] == 1
    assert all(row["seconds"] > 0 for row in rows.values()) and rows["0.1"]["trained"] < rows["0.5"]["trained"] < 1
    assert found["machine"]["threads"] == 1 and "% trains" in capsys.readouterr().out


@pytest.mark.full
def test_freezing_plan_finds_every_plan_in_flops_exact(tmp_path, capsys):
    path = tmp_path / "deep" / "record.json"
    small = ["--width", "0.25", "--batch", "2", "--epochs", "8", "--steps", "2", "--threads", "1", "--targets", "flops"]
    assert freezing_plan.main(["--model", "resnet20", *small, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["scheme"] for row in rows] == [*SCHEMES]
    assert all(row["saved"] == pytest.approx(row["planned"]) for row in rows)
    assert capsys.readouterr().out.count("0.0%") == len(SCHEMES)


@pytest.mark.full
def test_sieving_measures_the_pass_of_grand(tmp_path, monkeypatch):
    monkeypatch.setattr(sieving, "BATCH", 2)
    path, room = tmp_path / "record.json", sieving.grand.ROOM
    sieving.main(["--look", "--threads", "1", "--rounds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row.pop("model") for row in rows] == ["dense", "75% sparse"] and room == sieving.grand.ROOM
    assert all(set(row) == {"step_ms", "together_ms", "one_by_one_ms"} and min(row.values()) > 0 for row in rows)


def test_freezers_measures_every_one_that_looks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(freezers, "BATCH", 8)
    monkeypatch.setattr(freezers, "SIDE", 8)
    path = tmp_path / "deep" / "record.json"
    freezers.main(["--model", "resnet20", "--threads", "1", "--steps", "5", "--json", str(path)])
    record = json.loads(path.read_text())
    assert [row["method"] for row in record["rows"]] == freezers.LOOKING and "cpu" in record["machine"]
    assert {"egeria", "autofreeze", "simfreeze"} <= set(freezers.LOOKING)
    assert all(row["kept_kb"] >= 0 and row["none_frozen"] > 0 and row["most_frozen"] > 0 for row in record["rows"])
    _, *printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == freezers.LOOKING


def test_the_cache_is_timed_and_its_types_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache, "WIDTH", 0.25)
    path = tmp_path / "cache.json"
    options = ["--threads", "1", "--samples", "128", "--rounds", "1", "--json", str(path)]
    cache.main([*options, "--only", "read"])
    rows = json.loads(path.read_text())["read"]
    assert len(rows) == 2 * (2 + 2 * 2 * len(cache.KINDS)) and all(row["ms"] > 0 for row in rows)
    assert "of prefix" in capsys.readouterr().out
    activations = torch.randn(8, 3, 4, 4).relu()
    errors = [cache._error(cache._as_kept(activations, kind), activations) for kind in ("float32", "float16", "int8")]
    assert errors[0] == 0 < errors[1] < errors[2] < cache._error(cache._as_kept(activations, "store"), activations)


def test_smartfrz_is_measured_beside_the_steps_it_watches(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(smartfrz, "NETWORKS", {"small": ("resnet20", 0.9)})
    monkeypatch.setattr(smartfrz, "BATCH", 2)
    monkeypatch.setattr(smartfrz, "SIZE", 8)
    smartfrz.main(["--networks", "small", "--threads", "1", "--steps", "30", "--json", str(tmp_path / "record.json")])
    [row] = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert row["time"] == pytest.approx(row["smartfrz_s"] / row["epoch_s"]) and row["smartfrz_s"] > 0
    assert row["memory"] == pytest.approx(row["state_mb"] / row["step_mb"])
    assert row["state_mb"] > 7 * 30 * 1024 * 4 / 1e6  # windows of the stem and three blocks of two convolutions
    assert "small" in capsys.readouterr().out


def test_a_convolution_and_its_norm_take_turns_apart_and_as_one(capsys):
    conv_norm.main(["--pixels", "8", "--batch", "16", "--width", "0.5", "--rounds", "1"])
    assert "apart" in (printed := capsys.readouterr().out) and "forward" in printed and "both" in printed
