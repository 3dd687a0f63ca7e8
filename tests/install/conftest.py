from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the Python files of spfde and no core; run there, it hides the installed package."""
    shutil.copytree(ROOT / "spfde", tmp_path / "spfde", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


@pytest.fixture(scope="session")
def python():
    """Runs this interpreter in a folder and returns the finished process."""

    def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run
