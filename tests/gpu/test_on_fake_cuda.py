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


# Written for a GPU: every test with a part of its cases, in one process, since torch and Triton take seconds to import.
FILES = ("tests/gpu/test_layers.py", "tests/kernels/triton/test_gpu.py", "tests/kernels/triton/test_gpu_fusing.py")
PART = (
    "16x16 or two_runs or no_races or asks_the_device or same_tiles or run_dense or (frozen_chain and contiguous)"
    " or (trained_transformer_block and float32 and not 900)"
)
ON_FAKE = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fake_cuda")


@pytest.mark.parametrize("file", ["tests/gpu/on_fake_cuda.py", "tests/train/on_fake_cuda.py"])
def test_on_fake_cuda(file):
    python(*ON_FAKE, file, interpret=True)


def test_what_is_written_for_a_gpu_runs_on_fake_cuda():
    python(*ON_FAKE, "-k", PART, *FILES, interpret=True)


@pytest.mark.full
@pytest.mark.parametrize(("file", "part"), [(FILES[0], ""), (FILES[1], ""), (FILES[2], "not 900")])
def test_all_of_it_runs_on_fake_cuda(file, part):
    python(*ON_FAKE, "-k", part, file, interpret=True)


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
