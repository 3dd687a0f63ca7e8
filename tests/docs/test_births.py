"""The examples of docs/births.md run as printed, and its table names the inits there are."""

import re
from pathlib import Path

from spfde.topology import INITS

PAGE = (Path(__file__).parents[2] / "docs" / "births.md").read_text(encoding="utf-8")


def test_the_examples_run():
    space = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "births.md", "exec"), space)
    assert [row.number for row in space["table"]] == [0, 1, 2]


def test_every_init_has_a_row():
    rows = re.findall(r'^\| `"([\w-]+)"`.* \| .*\|', PAGE.split("## Lottery")[0], re.M)
    assert rows == [*INITS]
