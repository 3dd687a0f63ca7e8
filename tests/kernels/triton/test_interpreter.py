"""Runs what is in the interpreted_*.py files: Triton decides for a process whether it compiles or interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytest.importorskip("triton")


@pytest.mark.parametrize("file", sorted(HERE.glob("interpreted_*.py")), ids=lambda file: file.stem)
def test_in_the_interpreter(file):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=HERE.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


@pytest.mark.full
@pytest.mark.parametrize("file", sorted(HERE.glob("interpreted_*.py")), ids=lambda file: file.stem)
def test_many_more_in_the_interpreter(file):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "full", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=HERE.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 5), run.stdout[-5000:] + run.stderr[-1000:]  # 5: none there
