"""The correctness tests again under every other instruction set this machine runs (it is chosen once per process)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spfde._native import native

HERE = Path(__file__).parent


@pytest.mark.parametrize("isa", [name for name in native().isas() if name != native().isa()])
def test_correct_under(isa):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "native or not dense and not reference",
         *(str(HERE / f"test_{name}.py") for name in ("correctness", "norm_act", "conv2d_norm_act", "conv_chain"))],
        env={**os.environ, "SPFDE_ISA": isa}, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
