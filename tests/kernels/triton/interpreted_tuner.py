"""The tuner of launches on real kernels, in the interpreter, with a clock of its own; run by test_interpreter.py."""

import json

import pytest
import torch
from torch import nn

import spfde
from spfde.kernels.dispatch.rule import forget
from spfde.kernels.triton import conv2d, launch, sddmm, spmm, table
from spfde.kernels.triton.candidates import product_candidates
from spfde.kernels.triton.config import GPUS, Config
from spfde.kernels.triton.table import GpuTable, Key, Measured, trying
from spfde.sparse.pattern import Pattern
from spfde.tuning import tuner
from spfde.tuning.layer import Layer
from spfde.tuning.timing import Budget

# Triton 3.6 turns a loop's bound into an int in a way that numpy 2.4 refuses and older ones warn of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")

A100 = GPUS["NVIDIA A100-SXM4-80GB"]  # what the interpreter stands for
ABOUT = {"spfde": "0.1.0", "torch": "2.11.0", "triton": "3.6.0"}
LINEAR = Layer((64, 48), 33, pattern="block:32x16", dtype="float16")
CONV = Layer((32, 48, 3, 3), 1, 4, "block:16x16", "tf32")
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
def test_every_candidate_runs_as_it_is_timed_and_computes_the_same(layer, tmp_path, launched):
    first = {}

    def clock(calls):
        for way, call in calls.items():
            launched.clear()
            result = call()
            if way.part != "step":
                assert (*kernel_of(way.part), way.how) in launched
            assert tuner.same(result, first.setdefault((way.part, way.density), result))
        # The second is fastest, and the kernels win where a quarter is stored.
        ways = list(calls)
        if ways[0].part == "step":
            return {way: 1.0 if (way.how == "triton") == (way.density < 0.25) else 2.0 for way in ways}
        return {way: float(way != ways[min(1, len(ways) - 1)]) + 1 for way in ways}

    outcome = tuner.fill(tmp_path / "t.json", [layer], A100, ABOUT, clock, Budget(1e9), device="cpu")
    [measured] = outcome.table.entries.values()
    assert outcome.refused == {} and 0 < measured.break_even < 0.25
    (height, width), kind = Pattern.parse(layer.pattern).numbers, layer.kind
    for outputs, how in measured.forward.items():
        positions, op = (33, "linear") if layer is LINEAR else (16, "conv2d")
        assert how == product_candidates(A100, outputs, width, outputs // height, kind, positions, op)[1]


def test_a_kernel_that_takes_no_launch_is_not_tuned(monkeypatch):
    monkeypatch.setattr(tuner.timing, "medians", lambda calls, rounds, device: dict.fromkeys(calls, 1.0))
    monkeypatch.setattr(sddmm, "launch_of", lambda *args: None)
    with pytest.raises(tuner.Refused, match="no launch of weight_grad runs: RuntimeError: expected a kernel to take"):
        tuner.measure(LINEAR, A100, tuner.gpu_clock(1), "cpu")


def test_a_file_changes_the_launches_of_a_layer(tmp_path, launched, monkeypatch):
    monkeypatch.setattr(table, "_ADDED", [])
    monkeypatch.setattr(launch, "uses_tf32", lambda *op: True)  # else float32 is exact: nothing is measured for that
    layer = spfde.sparsify(nn.Linear(48, 64), 0.9, pattern="block:64x16")
    layer.kernel = "triton"
    x = torch.randn(33, 48).requires_grad_()
    layer(x).sum().backward()
    before, grads = list(launched), [x.grad.clone(), layer.values.grad.clone()]
    chosen = {"forward": Config(64, 16, 4, 2), "input_grad": Config(64, 32, 4, 2), "weight_grad": Config(32, 32, 4, 2)}
    key = Key(A100.name, "linear", (64, 16), "float32", table.bucket_of(33, 64, 48))
    outputs = range(16, 257, 16)
    measured = Measured(*({count: how for count in outputs} for how in chosen.values()), 0.5)
    GpuTable(A100.name, ABOUT, {key: measured}).save(tmp_path / "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text())["entries"][0]["forward"]["16"] == [64, 16, 4, 2]
    spfde.use_gpu_table(tmp_path / "mine.json")
    try:
        launched.clear()
        x.grad = layer.values.grad = None
        layer(x).sum().backward()
    finally:
        monkeypatch.undo()
        table.forget()
        forget()
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
