"""spfde without triton: it imports, trains, and says what is missing."""

import subprocess
import sys

PROGRAM = """
import sys

sys.modules["triton"] = None  # as if it were not installed
import torch
from torch import nn
import spfde
from spfde.kernels.triton import available

layer = spfde.sparsify(nn.Linear(64, 64), 0.5, pattern="block:16x16")
layer(torch.randn(8, 64)).sum().backward()
layer.kernel = "triton"
try:
    layer(torch.randn(8, 64))
except ValueError as error:
    assert "got: triton is not installed" in str(error), error
else:
    raise AssertionError("expected a refusal")
assert not available()
assert "spfde.kernels.triton.spmm" not in sys.modules
"""


def test_without_triton():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_layer_on_a_cpu_loads_no_triton_kernel():
    program = """
import sys, torch, spfde
layer = spfde.sparsify(torch.nn.Linear(64, 64), 0.5, pattern="block:16x16")
layer(torch.randn(8, 64)).sum().backward()
assert not {"spfde.kernels.triton.spmm", "spfde.kernels.triton.sddmm"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
