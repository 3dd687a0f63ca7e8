"""The example of docs/profile.md runs, and its tables name what the code does."""

import re
from pathlib import Path

from spfde.profiling.kinds import KINDS
from spfde.profiling.text import MEMORY

PAGE = (Path(__file__).parents[2] / "docs" / "profile.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "profile.md", "exec"), {})
    assert "sparse kernels" in capsys.readouterr().out


def test_every_kind_and_every_number_is_explained():
    explained = {name for cell in re.findall(r"^\| ([a-zA-Z, ]+) \|", PAGE, re.M) for name in cell.split(", ")}
    assert {*KINDS, *MEMORY, "peak"} <= explained
