"""Builds the programs of tests/cuda: the CUDA kernels on the emulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cmake
import ninja
from filelock import FileLock

ROOT = Path(__file__).parents[1]


def built(folder: str, target: str, *options: str) -> Path:
    """The folder in which a target of tests/cuda is up to date."""
    where = ROOT / "build" / folder
    tools = [f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR, 'ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure = ["-S", ROOT / "tests/cuda", "-B", where, "-G", "Ninja", *tools, *options]
    with FileLock(f"{where}.lock"):
        for arguments in (configure, ["--build", where, "--target", target]):
            done = subprocess.run([Path(cmake.CMAKE_BIN_DIR, "cmake"), *arguments], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return where
