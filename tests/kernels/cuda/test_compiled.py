"""What nvcc makes of the kernels for every architecture: no spills, and registers and shared memory as recorded.

`python tests/kernels/cuda/test_compiled.py [SOURCE ...]` writes the record anew, of some sources or of all.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORD = Path(__file__).with_name("resources.json")
ARCHITECTURES = ("80", "86", "87", "89", "90", "100", "110", "120", "121")
SOURCES = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
KERNEL = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
NAMES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}


def version() -> str:
    """The compiler's release, "13.0.88"."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", said)[1]


FLAGS = {"block": ("exact", "transposed")}  # of a kernel's template, by the first word of its name; else along


def readable(symbol: str) -> str:
    """spmm_kernel<float32, along> or block_spmm_kernel<float32, exact, 64> of a mangled name."""
    pattern = r".*?\d([a-z]+(?:2d)?(?:_[a-z]+(?:2d)?)*_kernel)(?:I(\w+?)EE?v)?"
    name, arguments = re.search(pattern, symbol).groups()
    if arguments is None:
        return name
    kind = next(kind for kind in ("13__nv_bfloat16", "6__half", "f") if arguments.startswith(kind))
    flags = iter(FLAGS.get(name.split("_")[0], ("along",)))
    parts = [NAMES[kind]]
    for what, value in re.findall(r"L([bi])(\d+)", arguments):
        part = value if what == "i" else next(flags)
        if value != "0":
            parts.append(part)
    return f"{name}<{', '.join(parts)}>"


def resources(source: str, architecture: str) -> dict[str, dict[str, int]]:
    """Registers of a thread and bytes spilled, by kernel."""
    flags = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", "-o", "/dev/null"]
    command = ["nvcc", *flags, "-I", ROOT / "csrc", "-I", ROOT / "csrc/include", ROOT / f"csrc/cuda/{source}.cu"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, kernel = {}, ""
    for line in done.stderr.splitlines():
        if match := KERNEL.search(line):
            found[kernel := readable(match[1])] = {}
        elif match := SPILLS.search(line):
            found[kernel]["spilled"] = int(match[1]) + int(match[2])
        elif match := USED.search(line):
            found[kernel]["registers"] = int(match[1])
    return found


@pytest.mark.full
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, no GPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_as_recorded(source, architecture):
    record, found = json.loads(RECORD.read_text()), resources(source, architecture)
    assert found
    assert not {kernel: used for kernel, used in found.items() if used["spilled"]}
    if record["nvcc"] == version():
        assert found == record["kernels"][source][architecture]


def test_the_record_is_of_all_kernels_and_architectures():
    kernels = json.loads(RECORD.read_text())["kernels"]
    assert sorted(kernels) == SOURCES
    assert all(tuple(each) == ARCHITECTURES for each in kernels.values())
    assert all(used["spilled"] == 0 for each in kernels.values() for found in each.values() for used in found.values())


if __name__ == "__main__":
    kept = json.loads(RECORD.read_text())["kernels"] if sys.argv[1:] else {}
    made = {source: {arch: resources(source, arch) for arch in ARCHITECTURES} for source in sys.argv[1:] or SOURCES}
    kernels = {source: each for source, each in sorted((kept | made).items()) if source in SOURCES}
    RECORD.write_text(json.dumps({"nvcc": version(), "kernels": kernels}, indent=1) + "\n")
