"""Drives CMake and Ninja for spfde._C; everything declarative is in pyproject.toml.

Any Python >= 3.6 can read this file, so that an old one gets a sentence and not a SyntaxError.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

MINIMUM = (3, 10)
ROOT = Path(__file__).resolve().parent


def stop(message):
    """Ends the build with one line instead of a traceback."""
    raise SystemExit(f"spfde: {message}")


if sys.version_info < MINIMUM:
    found = f"{sys.version.split()[0]} ({sys.executable})"
    stop(f"expected Python >= {MINIMUM[0]}.{MINIMUM[1]}, got {found}, try another python3")

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


def require_compiler():
    """Checks for what CMake would report in twenty lines: the system, a C++ compiler, Python's headers."""
    if not sys.platform.startswith("linux"):
        stop(f"expected Linux, got {sys.platform}, try a container or WSL 2")
    wanted = os.environ.get("CXX")
    names = shlex.split(wanted)[:1] if wanted else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        stop(f"expected a C++20 compiler, found none of {', '.join(names)}, try: apt install g++, or set CXX")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        stop(f"expected Python's headers, found no {header}, try: apt install python3-dev")


def tool(name, folder):
    """Path of cmake or ninja: the one pip installed (which need not be on PATH), else the system's."""
    try:
        path = shutil.which(name, path=getattr(importlib.import_module(name), folder))
    except ImportError:
        path = None
    path = path or shutil.which(name)
    if path is None:
        stop(f"expected {name}, found none, try: pip install {name}")
    return path


def pybind11_folder():
    """Folder of pybind11's CMake package."""
    try:
        return importlib.import_module("pybind11").get_cmake_dir()
    except ImportError:
        return stop("expected pybind11, found none, try: pip install pybind11")


def find_nvcc(environment, site):
    """Path of nvcc: what CUDACXX names, else on PATH, else the newest of the extra cuda-build in a site-packages."""
    named = environment.get("CUDACXX")
    path = shutil.which(named or "nvcc", path=environment.get("PATH", os.defpath))
    if path or named:
        return path
    packaged = {int(path.parts[-3][2:]): str(path) for path in Path(site).glob("nvidia/cu[0-9]*/bin/nvcc")}
    return packaged[max(packaged)] if packaged else None


def cuda_environment(environment, nvcc):
    """The environment in which CMake finds nvcc, and nvcc its libraries: packages have lib, it looks in lib64."""
    flags = environment.get("CUDAFLAGS", "")
    lib = Path(nvcc).resolve().parent.parent / "lib"
    given = f"-L{shlex.quote(str(lib))}"
    if (lib / "libcudart_static.a").exists() and not lib.with_name("lib64").exists() and given not in flags:
        flags = f"{flags} {given}".strip()
    return {**environment, "CUDACXX": nvcc, "CUDAFLAGS": flags}


def cuda_wanted(setting, sources, nvcc, named=None):
    """Whether to build csrc/cuda, by SPFDE_CUDA: 0 = no, 1 = yes or an error, auto = where it can be."""
    if setting not in ("0", "1", "auto"):
        stop(f"SPFDE_CUDA: expected 0, 1 or auto, got {setting!r}, try leaving it unset (auto)")
    if setting == "1" and not sources:
        stop("SPFDE_CUDA=1: expected CUDA sources in csrc/cuda, found none, try SPFDE_CUDA=auto")
    if setting != "0" and named and not nvcc:
        stop(f"CUDACXX: expected nvcc, found no {named}, try its whole path, or leaving CUDACXX unset")
    if setting == "1" and not nvcc:
        stop("SPFDE_CUDA=1: expected nvcc, found none, try setting CUDACXX, or the packages of the extra cuda-build")
    return setting != "0" and bool(sources) and bool(nvcc)


def build_folder(environment):
    """A folder that outlives the build, one for each setting that CMake reads once and remembers."""
    names = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAARCHS")
    remembered = [str(ROOT), sys.base_prefix] + [environment.get(name, "") for name in names]
    key = zlib.crc32("\n".join(remembered).encode())
    return ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{key:08x}"


class CMakeBuild(build_ext):
    """build_ext by CMake and Ninja: only what changed is compiled again."""

    def build_extension(self, ext):
        """Configures, builds, and copies the module to where setuptools wants it."""
        require_compiler()
        cmake, ninja = tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
        sources = list(ROOT.glob("csrc/cuda/*.cu"))
        environment = dict(os.environ)
        nvcc = find_nvcc(environment, sysconfig.get_path("purelib"))
        cuda = cuda_wanted(environment.get("SPFDE_CUDA") or "auto", sources, nvcc, environment.get("CUDACXX"))
        if cuda:
            environment = cuda_environment(environment, nvcc)
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11_folder(),
            "SPFDE_CUDA": int(cuda),
        }
        folder = build_folder(environment)
        configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        for command in (configure, [cmake, "--build", folder]):
            if subprocess.call([str(part) for part in command], env=environment):
                stop("the native core did not build, the lines above say why")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / target.name), str(target))


if __name__ == "__main__":
    setup(ext_modules=[Extension("spfde._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
