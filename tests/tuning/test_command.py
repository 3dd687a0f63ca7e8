"""`spfde bench --tune`: which layers are measured, and into which file."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spfde import cli
from spfde._machine import Machine
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS
from spfde.tuning import sweep
from spfde.tuning.layer import LayerSpec
from spfde.tuning.sweep import Outcome, check_layers


def spfde(arguments, columns=200):
    return CliRunner().invoke(cli.build("bench"), ["bench", *arguments.split()], env={"COLUMNS": str(columns)})


def told(arguments):
    result = spfde(arguments)
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_tuning_says_what_it_needs():
    for flags in ("--tune --device cuda", "--device cuda"):
        assert "CUDA device" in told(flags)


def test_without_triton_tuning_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep, "why_not", lambda device: "triton is not installed")
    assert "triton is not installed" in told("--tune")


@pytest.fixture
def filled(monkeypatch):
    """A GPU that measures nothing: the list holds what `fill` was asked for."""
    asked = []
    machine = Machine("0.1.0", "2.11.0", gpu="NVIDIA H200", triton="3.6.0")

    def fill(path, layers, machine, gpu, clock, limit, say, device):
        asked.append((path, layers, machine, gpu, limit.seconds))
        say("a layer")
        return Outcome(Table(machine, ()), {"some forward (1, 2, 3, 4)": "no room"}, ["one", "two"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep, "why_not", lambda device: None)
    monkeypatch.setattr(sweep, "gpu_here", lambda: GPUS["NVIDIA H200"])
    monkeypatch.setattr(Machine, "of_gpu", lambda: machine)
    monkeypatch.setattr(sweep, "fill", fill)
    return asked


def test_tuning_measures_the_usual_layers_into_the_gpus_file(filled):
    result = spfde("--tune --seconds 60")
    assert result.exit_code == 0, result.output
    [(path, layers, machine, gpu, seconds)] = filled
    assert (path, seconds, machine.gpu, gpu.name) == (Path("nvidia-h200.json"), 60, "NVIDIA H200", "NVIDIA H200")
    assert layers == sweep.usual_layers("cuda")
    assert "no room" in result.output and "2 layers" in result.output


def test_tuning_measures_the_layer_that_is_named(filled):
    flags = "--conv 64x128x3x3@7 --batch 8 --pattern block:16x64 --dtype tf32 --table some/file.json"
    assert spfde(f"--tune {flags}").exit_code == 0
    [(path, layers, *_)] = filled
    assert path == Path("some/file.json")
    assert layers == [LayerSpec((64, 128, 3, 3), 8, 7, "block:16x64", "tf32")]


def test_the_usual_layers_are_different_ones_that_can_be_tuned():
    for device, many in (("cpu", 10), ("cuda", 50)):
        layers = sweep.usual_layers(device)
        assert len(set(layers)) == len(layers) > many
        check_layers(layers, on_gpu=device == "cuda")


def test_names_of_files():
    assert sweep.file_name(Machine("0", "2", gpu="NVIDIA GeForce RTX 3060")) == "nvidia-geforce-rtx-3060.json"
    assert sweep.file_name(Machine("0", "2", "AMD EPYC", "avx2", 2)) == "amd-epyc-avx2-2t.json"


def test_a_cpu_is_tuned_by_the_same_tuner(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "BUCKETS", range(0, 33, 8))
    path = tmp_path / "mine.json"
    result = spfde(f"--tune --device cpu --linear 24x32 --batch 16 --repeats 1 --table {path}")
    assert result.exit_code == 0, result.output
    table = Table.load(path)
    assert {entry.problem.shape for entry in table.entries} == {(24, 32)}
    assert 2 <= len(table.entries) <= 3  # a bisection of five densities
    assert all(dict(entry.seconds).keys() == {"native", "dense"} and not entry.launches for entry in table.entries)
    assert "SPFDE_TABLE" in result.output
