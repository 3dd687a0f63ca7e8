"""The kernel "cuda" on the emulator of tests/cuda: its own bindings, tensors of the CPU."""

import importlib.util
import shutil

import pybind11
import pytest
from cuda_build import built


@pytest.fixture(scope="session")
def emulated():
    """The module cuda_emulated."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    folder = built("cuda-module", "cuda_emulated", "-DMODULE=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    [path] = folder.glob("cuda_emulated*.so")
    spec = importlib.util.spec_from_file_location("cuda_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
