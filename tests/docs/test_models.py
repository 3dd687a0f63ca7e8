"""The table of docs/models.md is what the zoo is: names, parameters, FLOPs."""

import re
from pathlib import Path

import pytest
import torch

from spfde import models
from spfde.flops import layer_work

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \| (\S+)", PAGE, re.M)


def test_every_network_has_a_row():
    assert [name for name, *_ in ROWS] == list(models.MODELS)


@pytest.mark.parametrize(("name", "parameters", "gflops", "size"), ROWS)
def test_rows_are_right(name, parameters, gflops, size):
    shape = [int(n) for n in re.findall(r"\d+", size)]
    with torch.device("meta"):
        model = models.create(name)
        x = torch.randn(1, *shape) if len(shape) == 3 else torch.zeros(1, *shape, dtype=torch.long)
        work = sum(layer.forward for layer in layer_work(model, x).values())
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    assert work / 1e9 == pytest.approx(float(gflops), rel=0.01)


def test_the_examples_run():
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "models.md", "exec"), {})


def test_options_are_listed():
    listed = dict(re.findall(r"^\| (`\w.*?) \| (`\w+`.*) \|$", PAGE.split("## Options")[1], re.M))
    assert len(listed) == 6
    for names, options in listed.items():
        first = re.findall(r"`(\w+)\*?`", names.replace("vit_*", "vit_tiny"))[0]
        assert re.findall(r"`(\w+)`", options) == list(models.options(first))
