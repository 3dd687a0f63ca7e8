"""Runs what is in the interpreted_*.py files: Triton decides for a process whether it compiles or interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("interpreted_*.py"))
PARTS = 3  # a process each: torch and Triton take seconds to import

pytest.importorskip("triton")


def interpreted(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)


@pytest.mark.parametrize("part", range(PARTS))
def test_in_the_interpreter(part):
    run = interpreted(*FILES[part::PARTS])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


@pytest.mark.full
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_many_more_in_the_interpreter(file):
    run = interpreted("-m", "full", file)
    assert run.returncode in (0, 5), run.stdout[-5000:] + run.stderr[-1000:]  # 5: none there
