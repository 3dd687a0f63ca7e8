"""The launch that a kernel is given: on trial, from a table in use, or none."""

import pytest
import torch

from spfde._machine import Machine
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.measurement import KernelMeasurement, Launch
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS, Config
from spfde.kernels.problem import Problem
from spfde.kernels.triton.tuned import launch_of, trying

H200 = GPUS["NVIDIA H200"]
HOW, OTHER = Config(64, 32, 4, 2), Config(256, 64, 8, 3)
LAUNCHES = (Launch("forward", 16, HOW), Launch("forward", 64, OTHER), Launch("input_grad", 32, HOW))
MORE = (Launch("forward", 16, OTHER), Launch("weight_grad", 16, OTHER))
PROBLEM = Problem(5000, (1024, 2048), 16, (16, 32), dtype="bfloat16")
MACHINE = Machine("0.1.0", "2.11.0", gpu=H200.name, triton="3.6.0")
SECONDS = (("triton", 1.0), ("dense", 2.0))


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(in_use, "_known", {})
    table = Table(MACHINE, (KernelMeasurement(PROBLEM, SECONDS, LAUNCHES),))
    in_use.use(table)
    yield table
    in_use.launch.cache_clear()


def ask(op="forward", outputs=16, gpu=H200, kind="linear", block=(16, 32), dtype=torch.bfloat16, exact=False):
    return launch_of(op, gpu, kind, block, outputs, dtype, 4096, (1024, 2048), exact)


def test_a_measured_launch_is_used_for_its_family_alone(table):
    assert (ask(), ask(outputs=64), ask("input_grad", 32)) == (HOW, OTHER, HOW)  # 4096 and 5000: within a halving
    others = (
        ask(outputs=32), ask("input_grad", 16), ask("weight_grad"), ask(exact=True), ask(kind="conv2d 3x3/1x1"),
        ask(gpu=GPUS["Orin"]), ask(block=(32, 16)), ask(dtype=torch.float16),
    )  # fmt: skip
    assert set(others) == {None}


def test_the_table_used_last_is_asked_first(table, monkeypatch):
    in_use.use(Table(MACHINE, (KernelMeasurement(PROBLEM, SECONDS, (Launch("forward", 16, OTHER),)),)))
    assert (ask(), ask("input_grad", 32)) == (OTHER, HOW)
    in_use.use(table)
    assert ask() == HOW
    monkeypatch.setattr(in_use, "_process", {H200.name: Table(MACHINE, (KernelMeasurement(PROBLEM, SECONDS, MORE),))})
    in_use.launch.cache_clear()
    assert (ask(), ask("weight_grad")) == (HOW, OTHER)  # the process's last


def test_a_launch_on_trial_goes_before_what_was_measured(table):
    tried = Config(32, 16, 4, 2)
    with pytest.raises(RuntimeError, match="failed"), trying({"forward": tried}):
        assert ask() == ask(exact=True) == tried
        assert ask("input_grad", 32) == HOW
        raise RuntimeError("failed")
    assert ask() == HOW


def test_a_trial_that_no_kernel_took_is_an_error():
    with pytest.raises(RuntimeError, match="input_grad"), trying({"forward": HOW, "input_grad": HOW}):
        ask()
