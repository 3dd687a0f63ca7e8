"""`spfde profile`: flags, tables, files."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from spfde import cli
from spfde.cli import profile as command


def spfde(arguments):
    return CliRunner().invoke(cli.build("profile"), ["profile", *arguments.split()], env={"COLUMNS": "200"})


def test_help_says_what_each_flag_does():
    text = re.sub(r"\s+", " ", spfde("--help").output.replace("│", " "))
    for flag in ("model", "sparsity", "pattern", "no-fuse", "recompute", "batch", "size", "rounds", "threads", "out"):
        assert f"--{flag} " in text
    assert "sparse beside dense" in text


def test_tables_and_files(tmp_path):
    flags = "--model resnet20 --sparsity 0.8 --pattern block:4x1 --recompute --batch 2 --size 16 --rounds 1 --threads 1"
    result = spfde(f"{flags} --out {tmp_path / 'deep' / 'er'}")
    assert result.exit_code == 0, result.output
    for word in ("sparse kernels", "layer1.0.conv1", "SparseConv2d", "(optimizer)", "peak", "dense MB"):
        assert word in result.output
    kept = json.loads((tmp_path / "deep" / "er" / "profile.json").read_text())
    assert (kept["pattern"], kept["size"], kept["batch"]) == ("block:4x1", [2, 3, 16, 16], 2)
    assert kept["environment"]["torch"] == torch.__version__
    assert (tmp_path / "deep" / "er" / "profile.png").stat().st_size > 1000


def test_a_dense_network_is_profiled_alone(tmp_path):
    result = spfde("--model resnet20 --sparsity 0 --no-fuse --batch 2 --size 16 --rounds 1 --threads 1")
    assert result.exit_code == 0, result.output
    assert "dense MB" not in result.output and "dense products" in result.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model resnet21", "expected a model to be one of"),
        ("--sparsity 1.5", "expected sparsity in [0, 1]"),
        ("--pattern blok:4x1", "expected"),
        ("--sparsity 0 --pattern block:4x1", "expected --pattern only of a sparse network"),
        ("--input 3x8x8", "--input only with module:callable"),
        ("--recompute --no-fuse", "expected --recompute with fused norms"),
    ],
)
def test_what_does_not_fit_is_told(flags, said):
    result = spfde(f"--batch 2 --rounds 1 {flags}")
    assert isinstance(result.exception, ValueError) and said in str(result.exception)


TWO = """import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(8, 16)
        self.two = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, a, b):
        return self.head(self.two(self.one(a) + self.one(b)))

def pair():
    return Two(), (torch.ones(5, 8), torch.ones(5, 8))

def net():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))
"""


@pytest.mark.parametrize(
    ("flags", "size"), [("two_inputs:pair", [[5, 8], [5, 8]]), ("two_inputs:net --input 8 --batch 3", [3, 8])]
)
def test_a_network_of_anybody(flags, size, tmp_path, monkeypatch):
    (tmp_path / "two_inputs.py").write_text(TWO)
    monkeypatch.chdir(tmp_path)
    result = spfde(f"--model {flags} --rounds 1 --threads 1 --out {tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "profile.json").read_text())["size"] == size


def test_a_directory_that_cannot_be_written_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "profile_step", None)
    (tmp_path / "file").touch()
    result = spfde(f"--model resnet20 --out {tmp_path / 'file'}")
    assert isinstance(result.exception, OSError) and "file" in str(result.exception)
