"""`spfde bench`: options, table, file, and what does not go together."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spfde import cli
from spfde._machine import Machine
from spfde.cli import bench as cli_bench
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS
from spfde.tuning import sweep
from spfde.tuning.layer import LayerSpec
from spfde.tuning.sweep import Outcome, check_layers

TINY = "--shape 32x48 --batch 4 --repeats 1 --device cpu"


def spfde(arguments, columns=200):
    return CliRunner().invoke(cli.build("bench"), ["bench", *arguments.split()], env={"COLUMNS": str(columns)})


def told(arguments):
    result = spfde(arguments)
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_help_names_every_flag():
    text = re.sub(r"\s+", " ", spfde("--help").output.replace("│", " "))
    flags = "shape batch size pattern sparsity dtype device threads repeats json tune table seconds"
    for flag in flags.split():
        assert f"--{flag} " in text


def test_a_table_and_a_file(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    result = spfde(f"{TINY} --sparsity 0.5 --sparsity 0.75 --json {path}")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^0\.75? ", result.output, re.M)) == 4
    assert len(re.findall(r"^0\.5 ", result.output, re.M)) == 4
    assert result.output.count("not timed: triton: ") == 1
    kept = json.loads(path.read_text())
    wanted = {"shape": [32, 48], "batch": 4, "size": 1, "pattern": "unstructured", "dtype": "float32", "stride": 1}
    assert kept["layer"] == wanted
    assert [cell["sparsity"] for cell in kept["cells"]] == [0.5, 0.75]
    assert kept["cells"][0]["seconds"]["native"]["both"][0] > 0
    assert kept["machine"]["torch"] == torch.__version__


def test_a_narrow_terminal_cuts_no_line():
    result = spfde("--shape 16x8x3x3 --batch 1 --size 4 --repeats 1 --device cpu --sparsity 0.95", columns=80)
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^0\.95 +[a-z_ ]+( +[\d.e+-]+ +[\d.]+x){3} *$", result.output, re.M)) == 5


def test_a_file_that_cannot_be_is_told_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "compare", None)
    (tmp_path / "file").touch()
    result = spfde(f"{TINY} --json {tmp_path / 'file' / 'bench.json'}")
    assert isinstance(result.exception, OSError)


def test_a_convolution_and_a_pattern_that_fixes_the_sparsity():
    result = spfde("--shape 16x8x3x3 --batch 1 --size 4 --pattern 2:4 --repeats 1 --device cpu --dtype bfloat16")
    assert result.exit_code == 0, result.output
    assert "conv2d 16x8x3x3 4px batch 1 2:4 bfloat16" in result.output and "dense channels_last" in result.output
    assert len(re.findall(r"^0\.5 ", result.output, re.M)) == 5


def test_threads_are_set(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    assert spfde(f"{TINY} --sparsity 0.5 --threads 3").exit_code == 0
    assert seen == [3]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--shape 3", "shape"),
        ("--size 4", "size"),
        ("--dtype int8", "dtype"),
        ("--dtype tf32 --device cpu", "dtype"),
        ("--device tpu", "device"),
        ("--pattern 2:4 --sparsity 0.7", "sparsity"),
        ("--sparsity 1.5 --device cpu", "sparsity"),
        ("--seconds 3", "--seconds"),
        ("--table x.json", "--table"),
        ("--tune --sparsity 0.5", "--sparsity"),
        ("--tune --json x.json", "--json"),
        ("--tune --device tpu", "device"),
        ("--tune --shape 8x8 --dtype bfloat16 --device cpu", "dtype"),
        ("--tune --pattern block:16x16", "--pattern"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, named):
    assert named in told(flags)


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
    flags = "--shape 64x128x3x3 --batch 8 --size 7 --pattern block:16x64 --dtype tf32 --table some/file.json"
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
    result = spfde(f"--tune --device cpu --shape 24x32 --batch 16 --repeats 1 --table {path}")
    assert result.exit_code == 0, result.output
    table = Table.load(path)
    assert {entry.problem.shape for entry in table.entries} == {(24, 32)}
    assert 2 <= len(table.entries) <= 3  # a bisection of five densities
    assert all(dict(entry.seconds).keys() == {"native", "dense"} and not entry.launches for entry in table.entries)
    assert "SPFDE_TABLE" in result.output
