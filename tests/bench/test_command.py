"""`spfde bench`: options, table, file, and what does not go together."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spfde import cli
from spfde.cli import bench as cli_bench
from spfde.kernels.triton.config import GPUS
from spfde.kernels.triton.table import GpuTable, Key, Measured
from spfde.tuning import here
from spfde.tuning.layer import Layer
from spfde.tuning.tuner import Outcome, check_layers

TINY = "--shape 32x48 --batch 4 --repeats 1 --device cpu"


def spfde(arguments, columns=200):
    return CliRunner().invoke(cli.build("bench"), ["bench", *arguments.split()], env={"COLUMNS": str(columns)})


def told(arguments):
    result = spfde(arguments)
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_help_says_what_each_flag_does():
    text = re.sub(r"\s+", " ", spfde("--help").output.replace("│", " "))
    flags = "shape batch size pattern sparsity dtype device threads repeats json tune table seconds"
    for flag in flags.split():
        assert f"--{flag} " in text
    assert "sparse beside dense" in text
    for default in (
        "1024x1024",
        "128",
        "unstructured",
        "0.8 0.9 0.95",
        "float32",
        "cuda where there is one",
        "torch's",
    ):
        assert f"[default: {default}]" in text


def test_a_table_and_a_file(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    result = spfde(f"{TINY} --sparsity 0.5 --sparsity 0.75 --json {path}")
    assert result.exit_code == 0, result.output
    for word in (
        "linear 32x48 batch 4 unstructured float32",
        "1 repeats",
        "forward",
        "auto at sparsity 0.75: native, predicted",
        "masked dense",
    ):
        assert word in result.output
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
    ("flags", "said"),
    [
        ("--shape 3", "expected a shape OUTxIN"),
        ("--size 4", "expected size of a convolution alone"),
        ("--dtype int8", "expected dtype to be one of"),
        ("--dtype tf32 --device cpu", "on a CPU, got tf32"),
        ("--device tpu", "expected device cpu or cuda, got 'tpu'"),
        ("--pattern 2:4 --sparsity 0.7", "expected sparsity 0.5"),
        ("--sparsity 1.5 --device cpu", "expected sparsity in [0, 1]"),
        ("--seconds 3", "expected --seconds only with --tune, got --seconds 3.0, try adding --tune"),
        ("--table x.json", "expected --table only with --tune, got --table x.json, try adding --tune"),
        ("--tune --sparsity 0.5", "expected --sparsity only without --tune, got --sparsity 0.5, try leaving it out"),
        ("--tune --json x.json", "expected --json only without --tune"),
        ("--tune --threads 1", "expected --threads only without --tune"),
        ("--tune --device cuda", "expected --device only without --tune"),
        ("--tune --pattern block:16x16", "expected --pattern only with --shape, got --pattern block:16x16, try adding"),
    ],
)
def test_what_does_not_go_together_is_told(flags, said):
    assert said in told(flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_tuning_says_what_it_needs():
    for flags in ("--tune", "--tune --shape 64x64 --pattern block:16x16 --dtype tf32"):
        message = told(flags)
        assert message.startswith("expected a CUDA device and triton for --tune, got: no CUDA device, try spfde.tune(")
        assert "\n" not in message
    assert "expected a CUDA device, got none" in told("--device cuda")


def test_without_triton_tuning_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(here, "why_not", lambda device: "triton is not installed")
    assert "for --tune, got: triton is not installed, try" in told("--tune")


@pytest.fixture
def filled(monkeypatch):
    """A GPU that measures nothing: the list holds what `fill` was asked for."""
    asked = []
    key = Key("NVIDIA H200", "linear", (64, 64), "bfloat16", (1, 2, 3))

    def fill(path, layers, gpu, about, clock, budget, say):
        asked.append((path, layers, gpu, about, budget.seconds))
        say("a layer: break-even at density 0.25")
        table = GpuTable(gpu.name, about, {key: Measured({}, {}, {}, 0.25)})
        return Outcome(table, {"some forward (1, 2, 3, 4)": "no room"}, ["one", "two"])

    monkeypatch.setattr(here, "check_gpu", lambda: None)
    monkeypatch.setattr(here, "gpu_here", lambda: GPUS["NVIDIA H200"])
    monkeypatch.setattr(here, "version", lambda: "3.6.0")
    monkeypatch.setattr(here, "fill", fill)
    monkeypatch.setattr(cli_bench.sys, "argv", ["spfde", "bench", "--tune"])
    return asked


def test_tuning_measures_the_usual_layers_into_the_gpus_file(filled):
    result = spfde("--tune --seconds 60")
    assert result.exit_code == 0, result.output
    [(path, layers, gpu, about, seconds)] = filled
    assert (path, seconds, gpu.name) == (Path("nvidia-h200.json"), 60, "NVIDIA H200")
    assert layers == here.usual_layers()
    assert about.keys() == {"spfde", "torch", "triton", "date", "command"}
    assert (about["triton"], about["command"]) == ("3.6.0", "spfde bench --tune")
    assert result.output.splitlines() == [
        "a layer: break-even at density 0.25",
        "not measured: some forward (1, 2, 3, 4): no room",
        "out of time for 2 layers; the same command goes on",
        "table: nvidia-h200.json, 1 entries; in use with SPFDE_GPU_TABLE=nvidia-h200.json",
    ]


def test_tuning_measures_the_layer_that_is_named(filled):
    flags = "--shape 64x128x3x3 --batch 8 --size 7 --pattern block:16x64 --dtype tf32 --table some/file.json"
    assert spfde(f"--tune {flags}").exit_code == 0
    [(path, layers, *_)] = filled
    assert path == Path("some/file.json")
    assert layers == [Layer((64, 128, 3, 3), 8, 7, "block:16x64", "tf32")]


def test_the_usual_layers_are_many_different_ones_that_can_be_tuned():
    layers = here.usual_layers()
    assert len(set(layers)) == len(layers) > 50
    check_layers(layers)
    assert str(layers[0]) == "linear 4096x4096 batch 16384 block:64x64 bfloat16"


def test_names_of_files():
    assert here.file_name("NVIDIA GeForce RTX 3060") == "nvidia-geforce-rtx-3060.json"
