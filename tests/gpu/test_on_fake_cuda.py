"""What will run on a GPU is run without one, so that nothing but the GPU is new there: see tests/fake_cuda.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("triton")


def python(*arguments: str, interpret: bool) -> None:
    """Runs Python in a process of its own: the fake GPU is there for good, and Triton decides once how kernels run."""
    paths = [ROOT, ROOT / "tests", ROOT / "benchmarks", *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    run = subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


FILES = {
    "tests/gpu/on_fake_cuda.py": "",
    "tests/gpu/test_layers.py": "",
    "tests/train/on_fake_cuda.py": "",
    "tests/kernels/triton/test_gpu.py": "",
    "tests/kernels/triton/test_gpu_fusing.py": "frozen_chain or trained_transformer_block and not 900",  # small
}


@pytest.mark.parametrize("file", FILES)
def test_on_fake_cuda(file):
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fake_cuda", "-k", FILES[file], file, interpret=True)


EVERY_KERNEL = """
import fake_cuda
fake_cuda.install()
import smallest
from spfde.kernels.triton import conv2d, sddmm, spmm
smallest.main()
kernels = {name for module in (spmm, sddmm, conv2d) for name in vars(module) if name.endswith("_kernel")}
assert {name for name, grid in fake_cuda.launches} == kernels, fake_cuda.launches
"""


def test_the_smallest_layers_reach_every_kernel_and_triton_compiles_each_launch():
    python("-c", EVERY_KERNEL, interpret=False)
