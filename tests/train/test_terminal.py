"""Standard output that is closed, full or poor in letters: commands go on, and training says so once."""

import io
import os
import subprocess
import sys

import pytest
from train.runs import OPTIONS

from spfde.cli.display import say
from spfde.cli.terminal import Steady, steady
from spfde.train.run_dir import RESULT

FLAGS = [
    part
    for name, value in {**OPTIONS, "epochs": 2, "freeze": 0, "sieve": 0}.items()
    for part in (f"--{name.replace('_', '-')}", str(value))
]


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, text):
        self.tries += 1
        raise self.error


def run(kind, *arguments):
    """A command whose standard output is a pipe that nobody reads, or a full device."""
    if kind == "pipe":
        unread, output = os.pipe()
        os.close(unread)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    try:
        return subprocess.run(
            [sys.executable, "-m", "spfde", *map(str, arguments)],
            stdout=output, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.close(output)


@pytest.mark.parametrize(("kind", "why"), [("pipe", "Broken pipe"), ("full", "No space left on device")])
def test_training_goes_on_without_its_display(kind, why, tmp_path):
    ended = run(kind, "train", *FLAGS, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines() == [f"spfde: the display ended ({why}); training goes on"]
    assert (tmp_path / RESULT).exists()


def test_a_closed_pipe_ends_other_commands_quietly():
    ended = run("pipe", "env", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_full_device_is_told_by_other_commands():
    ended = run("full", "env")
    assert ended.returncode == 1 and "No space left on device" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_first_error_is_told_and_nothing_is_tried_again():
    errors, file = [], Broken(OSError(5, "Input/output error"))
    steady_file = Steady(file, errors.append)
    for _ in range(3):
        assert steady_file.write("text") == 4
        steady_file.flush()
    assert errors == [file.error] and file.tries == 1


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [("utf-8", "a\udcff.png", "a\\udcff.png"), ("ascii", "caf\u00e9 \u2026", "caf\\xe9 \\u2026")],
)
def test_letters_that_cannot_be_written_are_escaped(monkeypatch, encoding, text, shown):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    say(steady(), text)
    assert output.buffer.getvalue().decode(encoding).strip() == shown
