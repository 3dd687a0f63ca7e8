"""What stops a build stops it with one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cmake
import pytest

RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys({missing!r}))
{prologue}
sys.argv = ["setup.py", "-q", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""

NO_PACKAGES = """
import sysconfig
where = sysconfig.get_path
sysconfig.get_path = lambda name: "nowhere" if name == "purelib" else where(name)
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
        (
            "1",
            ["spmm.cu"],
            [],
            "expected nvcc, found none, try setting CUDACXX, or the packages of the extra cuda-build",
        ),
    ],
)
def test_a_cuda_setting_that_cannot_be_honoured_is_refused(refusal, setting, sources, tools, message):
    line = refusal(tools=["c++", *tools], sources=sources, prologue=NO_PACKAGES, SPFDE_CUDA=setting)
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


def test_an_nvcc_that_cudacxx_names_and_nobody_has_is_named(script):
    with pytest.raises(SystemExit, match="CUDACXX: expected nvcc, found no /opt/nvcc, try"):
        script["cuda_wanted"]("auto", ["spmm.cu"], None, "/opt/nvcc")
    assert not script["cuda_wanted"]("0", ["spmm.cu"], None, "/opt/nvcc")


@pytest.fixture
def toolchain(tmp_path):
    """Makes an nvcc in a folder under tmp_path, with the static library in the folders named."""

    def make(folder, libraries=("lib",)):
        for name in libraries:
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "libcudart_static.a").touch()
        nvcc = tmp_path / folder / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
        return str(nvcc)

    return make


def test_nvcc_is_what_cudacxx_names_then_on_path_then_of_the_packages(script, toolchain, tmp_path):
    older, newer = toolchain("site/nvidia/cu9"), toolchain("site/nvidia/cu13")
    on_path, named = toolchain("cuda"), toolchain("other")
    site, environment = str(tmp_path / "site"), {"PATH": os.path.dirname(on_path), "CUDACXX": named}
    assert script["find_nvcc"](environment, site) == named
    assert script["find_nvcc"]({**environment, "CUDACXX": str(tmp_path / "none")}, site) is None
    del environment["CUDACXX"]
    assert script["find_nvcc"](environment, site) == on_path
    assert script["find_nvcc"]({"PATH": str(tmp_path)}, site) == newer
    os.remove(newer)
    assert script["find_nvcc"]({"PATH": str(tmp_path)}, site) == older
    assert script["find_nvcc"]({"PATH": str(tmp_path)}, str(tmp_path / "none")) is None


def test_the_libraries_beside_a_packaged_nvcc_are_handed_on(script, toolchain, tmp_path):
    packaged = toolchain("with space/cu13")
    given = script["cuda_environment"]({"CUDAFLAGS": "-O1", "HOME": "/"}, packaged)
    flag = f"-L'{tmp_path}/with space/cu13/lib'"
    assert given == {"HOME": "/", "CUDACXX": packaged, "CUDAFLAGS": f"-O1 {flag}"}
    assert script["cuda_environment"](given, packaged) == given
    toolkit = toolchain("cuda", libraries=["lib64", "lib"])  # nvcc finds its own
    assert script["cuda_environment"]({}, toolkit)["CUDAFLAGS"] == ""


ARCHITECTURES = """
include({root}/csrc/cuda/architectures.cmake)
spfde_cuda_architectures({nvcc} built unknown)
message("${{built}} without ${{unknown}}")
"""


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (
            [80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121],
            "80-real;86-real;87-real;89-real;90-real;100-real;110-real;120-real;121-real;121-virtual without \n",
        ),
        # nvcc 12.6, of JetPack 6
        (
            [50, 75, 80, 86, 87, 89, 90],
            "80-real;86-real;87-real;89-real;90-real;90-virtual without 100;110;120;121\n",
        ),
        ([35, 50, 70], "expected an nvcc that knows sm_80"),
    ],
)
def test_architectures_that_nvcc_does_not_know_are_left_out_by_name(root, tmp_path, known, told):
    nvcc, program = tmp_path / "nvcc", tmp_path / "try.cmake"
    nvcc.write_text("#!/bin/sh\n" + "".join(f"echo compute_{number}\n" for number in known))
    nvcc.chmod(0o755)
    program.write_text(ARCHITECTURES.format(root=root, nvcc=nvcc))
    done = subprocess.run([Path(cmake.CMAKE_BIN_DIR, "cmake"), "-P", program], capture_output=True, text=True)
    assert told in done.stderr


@pytest.fixture
def script(root):
    import runpy

    return runpy.run_path(str(root / "setup.py"))


def test_settings_that_cmake_remembers_have_a_folder_each(script):
    environment = {}
    folders = {script["build_folder"](environment)}
    for name in ("CXX", "CXXFLAGS", "CUDAARCHS", "CUDAFLAGS"):
        environment[name] = "other"
        folders.add(script["build_folder"](environment))
    assert len(folders) == 5
    assert script["build_folder"](environment) in folders
