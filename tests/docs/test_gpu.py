"""docs/gpu.md shows targets and predictions as the code knows them, and its example runs."""

import re
from pathlib import Path

import pytest
import torch
from record import Record
from targets import HEAD, table, verdicts

from spfde.kernels.gpu import GPUS
from spfde.kernels.problem import STEPS, Problem
from spfde.kernels.triton.config import SIZES
from spfde.kernels.triton.model import MARGIN, gain

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
NAMES = {"H200": "NVIDIA H200", "A100": "NVIDIA A100-SXM4-80GB", "AGX Orin": "Orin"}
PREDICTED = re.findall(r"^\| ([\w ]+?) \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \|$", PAGE, re.M)


def test_the_targets_are_those_of_the_benchmark():
    section = PAGE.split("## Targets")[1].split("\n## ")[0]
    assert table(HEAD, [verdict.row for verdict in verdicts(Record({}, "", 0, []))]) in section


def test_the_examples_run(capsys):
    training, graph = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(training, "gpu.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "block:64x64" in printed and "not converted" in printed
    compile(graph, "gpu.md", "exec")


def test_every_prediction_is_shown():
    assert [name for name, *_ in PREDICTED] == list(NAMES)
    assert f"at least {MARGIN} times the masked dense product's speed" in PAGE


@pytest.mark.parametrize(("name", "shown"), [(name, list(map(float, row))) for name, *row in PREDICTED])
def test_predictions_are_the_models(name, shown):
    for side, density in zip(SIZES, shown, strict=True):
        pays = [bucket for bucket in range(10 * STEPS) if _gain(name, side, bucket) >= 1]
        last = 2 ** (-pays[0] / STEPS)  # the next bucket's density is a factor higher, and does not pay
        assert last - 0.005 <= density <= last * 2 ** (1 / STEPS) + 0.005


def _gain(name, side, bucket):
    problem = Problem(16384, (4096, 4096), bucket, (side, side))
    return gain(problem, torch.bfloat16, GPUS[NAMES[name]])
