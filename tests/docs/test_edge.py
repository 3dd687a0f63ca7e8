"""docs/edge.md shows predictions as the model makes them, and names options that there are."""

import re
from math import log2
from pathlib import Path

import pytest
import torch

from spfde._machine import GpuFacts
from spfde.kernels.cuda import predicted_gain
from spfde.kernels.gpu import gpu_of
from spfde.kernels.problem import STEPS, Problem
from spfde.kernels.triton.model import gain

PAGE = (Path(__file__).parents[2] / "docs" / "edge.md").read_text(encoding="utf-8")
ROWS = {name: list(map(float, row.split("|"))) for name, row in re.findall(r"^\| ([\w ,]+) \| ((?:\d\.\d \| ){8}\d\.\d) \|$", PAGE, re.M)}  # fmt: skip # noqa: E501
BOARDS = {
    "Orin Nano 8 GB, 15 W": ("Orin", (8, 7), 8, 163, 0.625),
    "Orin Nano Super, 25 W": ("Orin", (8, 7), 8, 163, 0.918),
    "AGX Orin 64 GB, MAXN": ("Orin", (8, 7), 16, 163, 1.3),
    "Thor": ("NVIDIA Thor", (11, 0), 20, 227, 1.57),
    "DGX Spark": ("NVIDIA GB10", (12, 1), 48, 99, 2.5),
}


@pytest.mark.parametrize("name", BOARDS)
def test_predictions_are_the_models(name):
    called, capability, units, kib, clock = BOARDS[name]
    gpu = gpu_of(GpuFacts(called, capability, units, kib * 1024, clock, integrated=True))
    problems = [
        Problem(4096, (1024, 4096), round(-STEPS * log2(density)), (side, side))
        for side in (32, 64)
        for density in (0.2, 0.1, 0.05)
    ]
    wanted = [gain(problem, torch.bfloat16, gpu) for problem in problems]
    wanted += [predicted_gain(torch.float32, density, gpu) for density in (0.1, 0.05, 0.02)]
    assert ROWS[name] == [round(each, 1) for each in wanted]


def test_every_board_is_predicted():
    assert ROWS.keys() == BOARDS.keys()
