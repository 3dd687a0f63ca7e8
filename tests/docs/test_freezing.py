"""The freezer of the page on freezing, a subclass from outside of the package, works as printed there."""

import re
from pathlib import Path

import torch
from torch import nn

from spfde.freezing import blocks

PAGE = Path(__file__).parents[2] / "docs" / "freezing.md"


def test_the_freezer_of_the_page_freezes_what_stands_still():
    (code,) = [
        each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "class" in each
    ]
    names = {}
    exec(compile(code, "freezing.md", "exec"), names)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    parts = blocks(model, torch.randn(1, 8))
    freezer, again = (names["StillWeights"](model, parts) for _ in range(2))
    optimizer = torch.optim.SGD(
        [{"params": [*model[1:].parameters()]}, {"params": [*model[0].parameters()], "lr": 1e-9}], 0.1
    )
    assert freezer.begin_epoch(0) == [] and "nothing was seen" in freezer.reason
    for _ in range(2):
        model(torch.randn(16, 8)).square().mean().backward()
        freezer.observe()
        optimizer.step()
    again.load_state_dict(freezer.state_dict())
    assert freezer.begin_epoch(1) == again.begin_epoch(1) == [parts[0].name]
    assert "a step changed its weights by" in freezer.reason == again.reason
