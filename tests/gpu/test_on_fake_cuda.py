"""What will run on a GPU is run without one, so that nothing but the GPU is new there: see tests/fake_cuda.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("tests/gpu/test_layers.py", "tests/kernels/triton/test_gpu.py", "tests/gpu/on_fake_cuda.py")

pytest.importorskip("triton")


@pytest.mark.parametrize("file", TESTS)
def test_on_fake_cuda(file):
    paths = [str(ROOT / "tests"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fake_cuda", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
