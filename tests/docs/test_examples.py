"""The examples: the notebook runs from top to bottom here, the programs in `make test-integrations`."""

import json
import re
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_notebook_runs_from_top_to_bottom(capsys):
    cells = json.loads((EXAMPLES / "digits.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    with torch.random.fork_rng():
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    printed = capsys.readouterr().out
    assert "RigL moved" in printed and "layer3.0.conv1" in printed
    assert sum(names["losses"][-4:]) < sum(names["losses"][:4])


def test_the_index_lists_every_example():
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = {name for name in re.findall(r"examples/([\w.]+)`", index)}
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
