"""The GPU benchmark's cases, records and runs: what needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_cases import ABOUT, CASE, CLUSTERED, CONV, SMALL
from gpu import run
from gpu.cases import BLOCKS, DENSITIES, LINEAR, NETWORKS, OCCUPIED, RESNET, TARGETS, Case, cases
from gpu.clock import Budget
from gpu.record import Cell, Record, line


def cell(case: Case = CASE, **ways: list[float]) -> Cell:
    device = {name.replace("_", " "): {"forward": times} for name, times in ways.items()}
    return Cell(case, device, device, {"torch 2:4": "no such thing"})


def test_every_case_is_run_once_those_of_targets_first():
    names = [str(case) for case in cases()]
    asked = list(dict.fromkeys(target.case for target in TARGETS))
    more = [Case("linear", "bfloat16", 16384, 4096, 4096, *at) for at in ((64, 0.3), (16, 0.15))]
    full = 2 * len(BLOCKS) * (len(LINEAR) * len(DENSITIES) + len(RESNET))
    assert len(names) == len(set(names)) == full + len(more) + len(NETWORKS) + len(OCCUPIED)
    assert cases()[: len(asked)] == asked and len(asked) == 13
    assert names[0] == "linear 4096x4096 b16384 bfloat16 block 64 density 0.1"
    assert {str(case) for case in more} <= set(names[: len(asked)])


def test_names_say_what_is_special():
    assert str(CONV) == "conv 3x3/2 32x32 5px b2 tf32 block 16 density 0.5"
    assert str(CLUSTERED) == "linear 128x192 b8 tf32 unstructured, 0.5 of the tiles 0.2 full"
    assert str(SMALL) == "small b2 autocast block 16 density 0.5"


def test_a_convolution_counts_its_output_pixels():
    assert CONV.positions == 2 * 3 * 3
    assert CONV.flops == 2 * 2 * 3 * 3 * 32 * 32 * 9
    assert CASE.flops == 2 * 8 * 32 * 48


def test_peers_are_asked_for_what_they_have():
    assert CONV.ways == ("spfde", "spfde masked", "cudnn channels_last", "cudnn contiguous")
    assert CASE.ways == ("spfde", "spfde masked", "cublas", "torch bsr")
    assert CLUSTERED.ways == ("spfde", "spfde masked", "cublas")
    assert "torch 2:4" in replace(CASE, block=64, density=0.1).ways
    assert "torch 2:4" not in replace(CASE, block=64, density=0.1, dtype="tf32").ways


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
    assert some.speedup("frozen prefix", over="forward") is None
    assert line(some).endswith("forward 2.50x  [no torch 2:4: no such thing]")
    assert line(cell()).endswith("nothing timed  [no torch 2:4: no such thing]")


def test_a_part_may_be_measured_against_another():
    device = {"spfde": {"frozen prefix": [2.0]}, "cublas": {"frozen prefix": [3.0], "step": [9.0]}}
    some = Cell(CASE, device, {})
    assert (some.speedup("frozen prefix"), some.speedup("frozen prefix", over="step")) == (1.5, 4.5)


def test_a_line_warns_where_the_cpu_takes_longer():
    device, host = {"spfde": {"step": [2.0], "forward": [1.0]}}, {"spfde": {"step": [3.0], "forward": [0.5]}}
    some = Cell(CASE, device, host)
    assert some.launch_bound == {"step": 1.5}
    assert line(some).endswith("[launch bound: step, host 1.5 x device]")
    assert Cell(CASE, device, {}).launch_bound == {}


def test_a_line_says_where_auto_is_not_the_fastest():
    device = {"spfde": {"step": [2.0]}, "spfde masked": {"step": [5.0]}, "cublas": {"step": [4.0]}}
    wrong = Cell(CASE, device, {}, auto="spfde masked")
    assert wrong.missed == 2.5
    assert line(wrong).endswith("[auto takes spfde masked: 2.50 x the time of our fastest]")
    right = Cell(CASE, device, {}, auto="spfde")
    assert right.missed == 1 and "auto" not in line(right)
    assert Cell(CASE, device, {}).missed is None


def test_a_record_survives_its_file_and_is_named_after_gpu_and_date(tmp_path):
    cells = [cell(spfde=[1.0], cublas=[2.0]), Cell(SMALL, {}, {}, {}, {"spfde": "broken"}, "spfde auto", "2 of 2")]
    before = Record(ABOUT, cells, ["another"])
    path = before.write(tmp_path / "new")
    assert path.name == "nvidia-h200-2026-01-02.json"
    assert Record.read(path) == before
    assert list(path.parent.iterdir()) == [path]
    assert before.failures == [(cells[1], "spfde", "broken")]


def run_for(seconds: float, each: float, folder: Path, lost: int = 0, before: Sequence[Cell] = ()) -> Record:
    """Three cases that take `each` seconds on a clock of their own; the device is lost in the one with batch `lost`."""
    now = [0.0]

    def timed(case: Case) -> Cell:
        now[0] += each
        return replace(cell(case, spfde=[1.0]), failed={"spfde": "lost"} if case.batch == lost else {})

    chosen = [replace(CASE, batch=batch) for batch in (1, 2, 3)]
    record = Record(ABOUT, [*before])
    record, path = run.run(chosen, Budget(seconds, lambda: now[0]), record, folder, timed, lambda: False)
    assert Record.read(path) == record
    return record


def test_a_run_stops_before_its_time_is_up_and_names_what_is_missing(tmp_path):
    done = run_for(25, 10, tmp_path)
    assert [c.case.batch for c in done.cells] == [1, 2]
    assert done.unfinished == [str(replace(CASE, batch=3))]
    assert run_for(100, 10, tmp_path).unfinished == []
    assert len(run_for(0, 10, tmp_path).cells) == 0


def test_a_run_ends_with_its_device_and_keeps_what_came_before(tmp_path):
    done = run_for(100, 10, tmp_path, lost=2, before=[cell(CONV)])
    assert [c.case for c in done.cells] == [CONV, replace(CASE, batch=1), replace(CASE, batch=2)]
    assert done.unfinished == [str(replace(CASE, batch=3))]


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
