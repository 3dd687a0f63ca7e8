"""What stops a build stops it with one line that says what to do."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys({missing!r}))
{prologue}
sys.argv = ["setup.py", "-q", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture
def refusal(root, tmp_path, python):
    """Builds with an empty PATH (or one that holds `tools`); returns the one line it ends with."""

    def build(tools=(), missing=(), prologue="", sources=(), **environment):
        shutil.copy(root / "setup.py", tmp_path)
        for name in ("bin", "csrc/cuda"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for name in sources:
            (tmp_path / "csrc/cuda" / name).touch()
        for name in tools:
            (tmp_path / "bin" / name).symlink_to(sys.executable)
        program = RUN.format(missing=missing, prologue=prologue)
        done = python(tmp_path, "-c", program, PATH=str(tmp_path / "bin"), **environment)
        assert done.returncode != 0
        assert not (tmp_path / "build").exists()
        [line] = done.stderr.splitlines()
        return line

    return build


def test_a_missing_compiler_is_named(refusal):
    line = refusal()
    assert line.startswith("spfde: expected a C++20 compiler, found none of c++, g++, clang++, try: apt install")


def test_a_compiler_that_cxx_names_and_nobody_has_is_named(refusal):
    assert "found none of no-such-c++" in refusal(tools=["c++"], CXX="no-such-c++ -O2")


def test_missing_python_headers_are_named(refusal):
    prologue = "import sysconfig; sysconfig.get_path = lambda name: 'nowhere'"
    line = refusal(tools=["c++"], prologue=prologue)
    assert line == (
        f"spfde: expected Python's headers, found no {os.path.join('nowhere', 'Python.h')}, "
        "try: apt install python3-dev"
    )


@pytest.mark.parametrize("name", ["cmake", "ninja", "pybind11"])
def test_a_missing_build_requirement_is_named(refusal, name):
    line = refusal(tools=["c++"], missing=[name])
    assert line == f"spfde: expected {name}, found none, try: pip install {name}"


def test_another_system_is_refused(refusal):
    prologue = "import setuptools.command.build_ext; sys.platform = 'freebsd14'"
    assert refusal(prologue=prologue).startswith("spfde: expected Linux, got freebsd14, try")


def test_an_old_python_is_refused(refusal):
    line = refusal(prologue="sys.version_info = (3, 9, 18, 'final', 0); sys.version = '3.9.18 (main)'")
    assert line.startswith("spfde: expected Python >= 3.10, got 3.9.18 (")


@pytest.mark.parametrize(
    ("setting", "sources", "tools", "message"),
    [
        ("yes", [], [], "expected 0, 1 or auto, got 'yes', try leaving it unset (auto)"),
        ("1", [], ["nvcc"], "expected CUDA sources in csrc/cuda, found none, try SPFDE_CUDA=auto"),
        ("1", ["spmm.cu"], [], "expected nvcc, found none, try setting CUDACXX, or SPFDE_CUDA=auto"),
    ],
)
def test_a_cuda_setting_that_cannot_be_honoured_is_refused(refusal, setting, sources, tools, message):
    line = refusal(tools=["c++", *tools], sources=sources, SPFDE_CUDA=setting)
    assert line.startswith("spfde: SPFDE_CUDA")
    assert line.endswith(message)


@pytest.mark.parametrize(
    ("setting", "sources", "nvcc", "wanted"),
    [
        ("0", ["spmm.cu"], "nvcc", False),
        ("1", ["spmm.cu"], "nvcc", True),
        ("auto", ["spmm.cu"], "nvcc", True),
        ("auto", ["spmm.cu"], None, False),
        ("auto", [], "nvcc", False),
    ],
)
def test_cuda_is_built_where_it_is_asked_for_or_can_be(script, setting, sources, nvcc, wanted):
    assert script["cuda_wanted"](setting, sources, nvcc) is wanted


@pytest.fixture
def script(root):
    import runpy

    return runpy.run_path(str(root / "setup.py"))


def test_settings_that_cmake_remembers_have_a_folder_each(script, monkeypatch):
    folders = {script["build_folder"]()}
    for name in ("CXX", "CXXFLAGS", "CUDAARCHS"):
        monkeypatch.setenv(name, "other")
        folders.add(script["build_folder"]())
    assert len(folders) == 4
    assert script["build_folder"]() in folders
