"""The native core's own tests, which need no Python: on this CPU, and for aarch64 under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spfde._native import native

CROSS, QEMU = "aarch64-linux-gnu", next(filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None)
TOOLS = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command, **environment):
    return subprocess.run(
        command, env={**os.environ, **TOOLS, **environment}, capture_output=True, text=True, timeout=900
    )


def build(root, folder, *options):
    """Path of the tests' program."""
    for command in (("cmake", "-S", root, "-B", folder, "-G", "Ninja", "-DSPFDE_TESTS=ON", *options),
                    ("cmake", "--build", folder)):  # fmt: skip
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "spfde_tests"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("CROSS=no-such-cpu", "expected no-such-cpu-g++, found none, try: apt install g++-no-such-cpu"),
        ("QEMU=", "expected qemu-aarch64, found none, try: apt install qemu-user"),
    ],
)
def test_what_emulation_lacks_is_named(root, tmp_path, given, message):
    compiler = tmp_path / f"{CROSS}-g++"
    compiler.touch(mode=0o755)
    done = run("make", "-s", "-C", root, "cross-tools", given, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.full
def test_the_core_is_right_without_python(root, tmp_path):
    program = build(root, tmp_path / "build")
    for isa in native().isas():
        done = run(program, SPFDE_ISA=isa)
        assert (done.returncode, done.stdout) == (0, f"instruction set {isa}\nall passed\n")


@pytest.mark.full
@pytest.mark.skipif(not (QEMU and shutil.which(f"{CROSS}-g++")), reason="no aarch64 compiler or no qemu-user here")
def test_the_core_is_right_on_emulated_aarch64(root, tmp_path):
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    program = build(root, tmp_path / "build", *system, f"-DCMAKE_CXX_COMPILER={CROSS}-g++")
    done = run(QEMU, "-L", f"/usr/{CROSS}", program)
    assert (done.returncode, done.stdout) == (0, "instruction set neon\nall passed\n")
