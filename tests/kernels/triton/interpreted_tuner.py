"""The tuner of launches on real kernels, in the interpreter, with a clock of its own; run by test_interpreter.py."""

import pytest
import torch
from torch import nn

import spfde
from spfde._machine import Machine
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.measurement import KernelMeasurement, Launch
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS, Config
from spfde.kernels.problem import Problem
from spfde.kernels.triton import candidates, conv2d, launch, sddmm, spmm
from spfde.kernels.triton.candidates import product_candidates
from spfde.kernels.triton.tuned import trying
from spfde.sparse.pattern import Pattern
from spfde.tuning import measure as tuner
from spfde.tuning.layer import LayerSpec
from spfde.tuning.sweep import around_break_even, fill
from spfde.tuning.timing import TimeLimit

# Triton 3.6 turns a loop's bound into an int in a way that numpy 2.4 refuses and older ones warn of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")

A100 = GPUS["NVIDIA A100-SXM4-80GB"]  # what the interpreter stands for
MACHINE = Machine("0.1.0", "2.11.0", gpu=A100.name, triton="3.6.0")
LINEAR = LayerSpec((64, 48), 33, pattern="block:32x16", dtype="float16")
CONV = LayerSpec((32, 48, 3, 3), 1, 4, "block:16x16", "tf32")
KERNELS = {"spmm_kernel": "spmm", "conv2d_kernel": "spmm", "sddmm_kernel": "sddmm", "conv2d_grad_kernel": "sddmm"}


@pytest.fixture
def launched(monkeypatch):
    """The launches of kernels, in order."""
    seen = []
    for module in (spmm, sddmm, conv2d):
        run = module.launch

        def noted(kernel, grid, *args, config, run=run, **constants):
            if kernel.__name__ in KERNELS:
                seen.append((KERNELS[kernel.__name__], constants.get("TRANSPOSED"), config))
            run(kernel, grid, *args, config=config, **constants)

        monkeypatch.setattr(module, "launch", noted)
    return seen


def kernel_of(op):
    return ("sddmm", None) if op == "weight_grad" else ("spmm", op == "input_grad")


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=str)
def test_every_candidate_runs_as_it_is_timed_and_computes_the_same(layer, tmp_path, launched, monkeypatch):
    monkeypatch.setattr(candidates, "exact", lambda dtype, op: False)  # as with torch's flag for TF32
    first = {}

    def clock(calls):
        for trial, call in calls.items():
            launched.clear()
            result = call()
            if trial.op != "step":
                assert (*kernel_of(trial.op), trial.launch) in launched
            assert tuner.same(result, first.setdefault((trial.op, trial.density), result))
        # The second is fastest, and the kernels win where a quarter is stored.
        trials = list(calls)
        if trials[0].op == "step":
            return {trial: 1.0 if (trial.kernel == "triton") == (trial.density < 0.25) else 2.0 for trial in trials}
        return {trial: float(trial != trials[min(1, len(trials) - 1)]) + 1 for trial in trials}

    outcome = fill(tmp_path / "t.json", [layer], MACHINE, A100, clock, TimeLimit(1e9), device="cpu")
    assert outcome.refused == {}
    assert {entry.kernel for entry in outcome.table.entries} == {"triton", "dense"}
    (height, width), kind = Pattern.parse(layer.pattern).numbers, layer.kind
    for made in {each for entry in outcome.table.entries for each in entry.launches if each.op == "forward"}:
        positions, op = (33, "linear") if layer is LINEAR else (16, "conv2d")
        together = made.outputs // height
        assert made.config == product_candidates(A100, made.outputs, width, together, kind, positions, op)[1]


def test_a_kernel_that_takes_no_launch_is_not_tuned(monkeypatch):
    monkeypatch.setattr(tuner.timing, "medians", lambda calls, rounds, device: dict.fromkeys(calls, 1.0))
    monkeypatch.setattr(sddmm, "launch_of", lambda *args: None)
    with pytest.raises(tuner.Refused, match="no launch of weight_grad runs: RuntimeError"):
        around_break_even(LINEAR, Table(MACHINE, ()), A100, tuner.checking_clock(1, "cpu"), "cpu")


def test_a_table_changes_the_launches_of_a_layer(launched, monkeypatch):
    monkeypatch.setattr(in_use, "_known", {})
    monkeypatch.setattr(launch, "uses_tf32", lambda *op: True)  # else float32 is exact: nothing is measured for that
    layer = spfde.sparsify(nn.Linear(48, 64), 0.9, pattern="block:64x16")
    layer.kernel = "triton"
    x = torch.randn(33, 48).requires_grad_()
    layer(x).sum().backward()
    before, grads = list(launched), [x.grad.clone(), layer.values.grad.clone()]
    chosen = {"forward": Config(64, 16, 4, 2), "input_grad": Config(64, 32, 4, 2), "weight_grad": Config(32, 32, 4, 2)}
    launches = tuple(Launch(op, outputs, how) for op, how in chosen.items() for outputs in range(16, 257, 16))
    seconds = (("triton", 1.0), ("dense", 2.0))
    in_use.use(Table(MACHINE, (KernelMeasurement(Problem(33, (64, 48), 16, (64, 16)), seconds, launches),)))
    try:
        launched.clear()
        x.grad = layer.values.grad = None
        layer(x).sum().backward()
    finally:
        in_use.launch.cache_clear()
    assert launched == [(*kernel_of(op), chosen[op]) for op in ("forward", "input_grad", "weight_grad")]
    assert not {how for *_, how in before} & set(chosen.values())
    for got, exact in zip((x.grad, layer.values.grad), grads, strict=True):
        torch.testing.assert_close(got, exact, atol=1e-2, rtol=1e-2)


def test_a_trial_reaches_the_backward_pass(launched):
    layer = spfde.sparsify(nn.Linear(32, 32), 0.5, pattern="block:16x16")
    layer.kernel = "triton"
    with trying({"weight_grad": Config(16, 16, 4, 1)}):
        layer(torch.randn(8, 32)).sum().backward()
    assert launched[-1] == ("sddmm", None, Config(16, 16, 4, 1))
