"""Ctrl-C at the command line: one line says how to go on, and going on ends where the run would have."""

import shlex
import signal

import pytest
from train.runs import OPTIONS, last_state, same
from typer.testing import CliRunner

from spfde import cli
from spfde.train import loop
from spfde.train.files import RESULT, checkpoints

FLAGS = [
    part
    for name, value in {**OPTIONS, "epochs": 4, "freeze": 0.05}.items()
    for part in (f"--{name.replace('_', '-')}", str(value))
]


def spfde(*arguments):
    return CliRunner().invoke(cli.build("train"), ["train", *map(str, arguments)])


@pytest.fixture
def press(monkeypatch):
    """Sends this process the signal of Ctrl-C in the n-th evaluation of the runs to come."""

    def arm(n):
        evaluate, seen = loop.evaluate, []

        def evaluate_and_press(*args):
            seen.append(None)
            if len(seen) == n:
                signal.raise_signal(signal.SIGINT)
            return evaluate(*args)

        monkeypatch.setattr(loop, "evaluate", evaluate_and_press)

    yield arm


def test_goes_on_with_the_command_that_it_names(press, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "with a space"
    assert spfde(*FLAGS, "--out", whole).exit_code == 0
    press(3)
    stopped = spfde(*FLAGS, "--out", out)
    monkeypatch.undo()
    assert stopped.exit_code == 130
    assert len(checkpoints(out)) == 2 and not (out / RESULT).exists()
    last = stopped.stderr.strip().splitlines()[-1]
    message, command = last.split(": ", 1)
    assert message == "stopped after the last checkpoint; continue with"
    resumed = spfde(*shlex.split(command)[2:])
    assert resumed.exit_code == 0, resumed.output
    assert "from epoch 3" in resumed.stdout
    assert same(last_state(out), last_state(whole))


def test_before_the_first_checkpoint_there_is_nothing_to_resume(press, tmp_path):
    press(1)
    stopped = spfde(*FLAGS, "--out", tmp_path / "run")
    assert stopped.exit_code == 130
    assert stopped.stderr.strip() == "stopped before the first checkpoint; start again with the same flags"
    assert spfde(*FLAGS, "--epochs", 2, "--freeze", 0, "--out", tmp_path / "run").exit_code == 0


def test_without_a_directory_nothing_is_kept(press):
    press(1)
    stopped = spfde(*FLAGS)
    assert stopped.exit_code == 130
    assert stopped.stderr.strip() == "stopped; nothing is kept without --out"


def test_a_comparison_goes_on_where_it_was(press, tmp_path, monkeypatch):
    out = tmp_path / "both"
    press(6)  # four epochs of the baseline, then one and a half of spfde
    assert spfde(*FLAGS, "--compare", "dense", "--layout", "contiguous", "--out", out).exit_code == 130
    monkeypatch.undo()
    assert len(checkpoints(out / "dense")) == 4 and len(checkpoints(out / "spfde")) == 1
    baseline = [path.stat().st_mtime_ns for path in checkpoints(out / "dense")]
    resumed = spfde("--resume", "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert baseline == [path.stat().st_mtime_ns for path in checkpoints(out / "dense")]
    assert (out / "report.html").exists() and (out / "spfde" / RESULT).exists()
