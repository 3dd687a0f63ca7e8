"""A real build of the native core from a copy of the tree, without network."""

from __future__ import annotations

import os
import shutil
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def tree(root, tmp_path_factory):
    """A copy of what the build reads."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in ("csrc", "spfde", "tests"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(tree, python):
    """The wheel that pip builds there."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "dist"]
    done = python(tree, "-m", "pip", "wheel", *options, ".", **os.environ | {"SPFDE_CUDA": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tree / "dist").iterdir()
    return path


def test_a_wheel_holds_the_package_and_the_module_and_nothing_else(tree, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(tree)) for path in (tree / "spfde").rglob("*.py")}
    data = {"spfde/py.typed"} | {f"spfde/freezing/smartfrz/predictor.{suffix}" for suffix in ("npz", "json")}
    for folder, files in (("tuning/devices", "*.json"), ("train/recipe/presets", "*.toml")):
        data |= {str(path.relative_to(tree)) for path in (tree / "spfde" / folder).glob(files)}
    assert names == sources | data | {f"spfde/_C{sysconfig.get_config_var('EXT_SUFFIX')}"}


def test_a_wheel_works_where_it_is_unpacked(wheel, tmp_path, python):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "from spfde._native import native; core = native(); print(core.__file__)"
    done = python(tmp_path, "-c", program, **os.environ)
    assert Path(done.stdout.strip()).parent == tmp_path / "spfde", done.stderr


def test_an_unchanged_tree_compiles_nothing_again(tree, wheel, python):
    before = {path: path.stat().st_mtime_ns for path in (tree / "build").rglob("*.o")}
    done = python(tree, "setup.py", "build_ext", "--inplace", **os.environ | {"SPFDE_CUDA": "0"})
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tree / "build").rglob("*.o")}
    assert before


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, no GPU")
def test_cuda_sources_are_built_for_the_architectures_asked_for(tree, tmp_path, python):
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("build", "dist", "*.so"))
    done = python(copy, "setup.py", "build_ext", "--inplace", **os.environ | {"SPFDE_CUDA": "1", "CUDAARCHS": "90"})
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = (copy / "build").rglob("spmm.cu.o")
    assert b"sm_90" in built.read_bytes()
    program = "from spfde._native import native; print(native().cuda_archs(), native().cuda_spmm.__name__)"
    done = python(copy, "-c", program, **os.environ)
    assert done.stdout.strip() == "['90'] cuda_spmm", done.stderr  # it loads without a driver
