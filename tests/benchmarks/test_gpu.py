"""The GPU benchmark's parts that need no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu import layers, run
from gpu.cases import BLOCKS, DENSITIES, LINEAR, RESNET, Case, cases
from gpu.clock import Budget
from gpu.record import Cell, Record, line

CASE = Case("linear", "bfloat16", 8, 32, 48, 16, 0.5)
CONV = Case("conv2d", "tf32", 2, 32, 32, 16, 0.5, 5, 2)
ABOUT = {"gpu": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture(autouse=True)
def flags():
    """What float32 products may round to is afterwards as it was before."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


def cell(case: Case = CASE, **ways: list[float]) -> Cell:
    device = {name.replace("_", " "): {"forward": times} for name, times in ways.items()}
    return Cell(case, device, device, {"torch 2:4": "no such thing"})


def test_every_case_is_run_once_the_most_telling_first():
    names = [str(case) for case in cases()]
    assert len(names) == len(set(names)) == 2 * len(BLOCKS) * (len(LINEAR) * len(DENSITIES) + len(RESNET))
    assert names[0] == "linear 4096x4096 b16384 bfloat16 block 64 density 0.2"
    assert names[6] == "conv 3x3 256x256 14px b64 bfloat16 block 64 density 0.2"


def test_a_convolution_counts_its_output_pixels():
    assert CONV.positions == 2 * 3 * 3
    assert CONV.flops == 2 * 2 * 3 * 3 * 32 * 32 * 9
    assert CASE.flops == 2 * 8 * 32 * 48


def test_peers_are_asked_for_what_they_have():
    assert CONV.ways == ("spfde", "cudnn channels_last", "cudnn contiguous")
    assert "torch 2:4" not in CASE.ways
    assert "torch 2:4" in replace(CASE, block=64, density=0.2).ways
    assert "torch 2:4" not in replace(CASE, block=64, density=0.2, dtype="tf32").ways


def test_a_budget_runs_out():
    now = iter([10.0, 12.0, 12.0, 25.0])
    budget = Budget(5, lambda: next(now))
    assert budget.left == 3
    assert not budget.allows(3)
    assert budget.left == 0


def test_speedup_is_over_the_fastest_dense_way():
    some = cell(spfde=[1.0, 2.0, 3.0], cublas=[4.0, 5.0, 6.0], torch_bsr=[1.0])
    assert some.speedup("forward") == 2.5
    assert some.speedup("forward", "torch bsr") == 5
    assert some.speedup("step") is None
    assert line(some).endswith("forward 2.50x  [no torch 2:4: no such thing]")
    assert line(cell()).endswith("nothing timed  [no torch 2:4: no such thing]")


def test_a_record_survives_its_file_and_is_named_after_gpu_and_date(tmp_path):
    before = Record(ABOUT, [cell(spfde=[1.0], cublas=[2.0])], ["another"])
    path = before.write(tmp_path / "new")
    assert path.name == "nvidia-h200-2026-01-02.json"
    assert Record.read(path) == before
    assert list(path.parent.iterdir()) == [path]


def run_for(seconds: float, each: float, folder: Path) -> Record:
    """Three cases that take `each` seconds on a clock of their own."""
    now = [0.0]

    def timed(case: Case) -> Cell:
        now[0] += each
        return cell(case, spfde=[1.0])

    chosen = [replace(CASE, batch=batch) for batch in (1, 2, 3)]
    record, path = run.run(chosen, Budget(seconds, lambda: now[0]), dict(ABOUT), folder, timed)
    assert Record.read(path) == record
    return record


def test_a_run_stops_before_its_time_is_up_and_names_what_is_missing(tmp_path):
    done = run_for(25, 10, tmp_path)
    assert [c.case.batch for c in done.cells] == [1, 2]
    assert done.unfinished == [str(replace(CASE, batch=3))]
    assert run_for(100, 10, tmp_path).unfinished == []
    assert len(run_for(0, 10, tmp_path).cells) == 0


@pytest.mark.parametrize("case", [CASE, CONV], ids=["linear", "conv2d"])
def test_ways_compute_the_same_layer_part_by_part(case, monkeypatch):
    given = layers.problem(case, "cpu")
    # Without a GPU the masked product stands for the kernel.
    monkeypatch.setattr(layers, "KERNEL", "dense")
    dense = layers.calls(given, "cublas" if case.kind == "linear" else "cudnn contiguous")
    ours = layers.calls(given, "spfde")
    assert list(ours) == list(dense) == list(layers.PARTS)
    for part in ours:
        got, want = (result if isinstance(result, tuple) else (result,) for result in (ours[part](), dense[part]()))
        assert len(got) == len(want) == (2 if part == "step" else 1)
        if part in ("weight gradient", "step"):
            assert got[-1].numel() == given.mask.sum()
        if part != "weight gradient":
            torch.testing.assert_close(got[0], want[0], atol=0.1, rtol=0.1)
    assert torch.equal(ours["step"]()[0], ours["frozen step"]()[0])


def test_ways_keep_their_memory_format():
    given = layers.problem(CONV, "cpu")
    formats = [way.removeprefix("cudnn ") for way in CONV.ways if way.startswith("cudnn")]
    assert formats == ["channels_last", "contiguous"]
    results = [layers.calls(given, f"cudnn {name}")["forward"]() for name in formats]
    assert [y.is_contiguous() for y in results] == [False, True]


def test_a_way_that_is_wrong_is_absent_with_the_reason(monkeypatch):
    given = layers.problem(CASE, "cpu")
    wrong = replace(given, mask=given.mask.roll(16, 0))
    monkeypatch.setattr(layers, "KERNEL", "dense")
    with pytest.raises(layers.Absent, match="wrong output: relative error"):
        layers.calls(wrong, "spfde")


def test_nothing_runs_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="expected a CUDA device, got none"):
        run.main([])
    script = Path(run.__file__).with_name("run.sh")
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == ("spfde: expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA")


def test_a_filter_that_matches_nothing_is_refused():
    assert [case.block for case in run.select(["conv", "14px", "256x256", "tf32"])] == [64, 128, 32, 16]
    with pytest.raises(SystemExit, match="got conv 9x9"):
        run.select(["conv 9x9"])
