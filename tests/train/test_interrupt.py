"""Ctrl-C at the command line: one line says how to go on, and going on ends where the run would have."""

import importlib
import shlex
import signal

import pytest
from train.runs import OPTIONS, last_state, same
from typer.testing import CliRunner

from spfde import cli
from spfde.train import loop
from spfde.train.run_dir import RESULT, checkpoints

FLAGS = [
    part
    for name, value in {**OPTIONS, "epochs": 4, "freeze": 0.05}.items()
    for part in (f"--{name.replace('_', '-')}", str(value))
]


fit_module = importlib.import_module("spfde.train.fit")


def spfde(*arguments):
    return CliRunner().invoke(cli.build("train"), ["train", *map(str, arguments)])


@pytest.fixture
def press(monkeypatch):
    """Sends this process a signal, that of Ctrl-C, in the n-th evaluation of the runs to come."""

    def arm(n, number=signal.SIGINT):
        evaluate, seen = loop.evaluate, []

        def evaluate_and_press(*args):
            seen.append(None)
            if len(seen) == n:
                signal.raise_signal(number)
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
    names = [path.name for path in checkpoints(out)]
    assert names == ["epoch-000.pt", "epoch-001.pt", "epoch-002-step-000003.pt"] and not (out / RESULT).exists()
    last = stopped.stderr.strip().splitlines()[-1]
    message, command = last.split(": ", 1)
    assert message == "stopped, and kept; continue with"
    resumed = spfde(*shlex.split(command)[2:])
    assert resumed.exit_code == 0, resumed.output
    assert "starts at epoch 2" in resumed.stdout
    assert same(last_state(out), last_state(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_do_the_same(press, tmp_path, monkeypatch, number):
    before = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored
    try:
        press(1, number)
        stopped = spfde(*FLAGS, "--out", tmp_path)
    finally:
        signal.signal(number, before)
    monkeypatch.undo()
    assert stopped.exit_code == 128 + number
    assert stopped.stderr.startswith("stopped, and kept; continue with: spfde train --resume --out ")
    resumed = spfde("--resume", "--out", tmp_path)
    assert resumed.exit_code == 0 and "starts at epoch 0" in resumed.stdout


def test_a_damaged_checkpoint_is_told_in_one_line_and_the_one_before_goes_on(tmp_path):
    assert spfde(*FLAGS, "--out", tmp_path).exit_code == 0
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = spfde("--resume", "--out", tmp_path)
    assert resumed.exit_code == 0, resumed.output
    (line,) = [line for line in resumed.stdout.splitlines() if "refused" in line]
    assert line.startswith(f"spfde: expected a complete spfde checkpoint at {newest}, got ")
    assert "starts at epoch 3" in resumed.stdout


def test_before_the_first_step_there_is_nothing_to_resume(monkeypatch, tmp_path):
    def press(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "build", press)
    stopped = spfde(*FLAGS, "--out", tmp_path / "run")
    monkeypatch.undo()
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
    assert len(checkpoints(out / "dense")) == 4
    assert [path.name for path in checkpoints(out / "spfde")] == ["epoch-000.pt", "epoch-001-step-000003.pt"]
    baseline = [path.stat().st_mtime_ns for path in checkpoints(out / "dense")]
    resumed = spfde("--resume", "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert baseline == [path.stat().st_mtime_ns for path in checkpoints(out / "dense")]
    assert (out / "report.html").exists() and (out / "spfde" / RESULT).exists()
