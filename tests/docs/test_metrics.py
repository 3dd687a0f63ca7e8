"""docs/training.md lists the keys of metrics.jsonl as they are written."""

import json
import re
from pathlib import Path

from train.runs import recipe

from spfde.train import fit

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
KINDS = {"integer": int, "object": dict, "list": list, "text": str}


def test_every_key_of_a_line_is_documented_with_its_type(tmp_path):
    table = re.split(r"^##+ ", PAGE.split("### metrics.jsonl")[1], flags=re.M)[0]
    listed = {
        name: next((kind for word, kind in KINDS.items() if text.startswith(word)), float)
        for names, text in re.findall(r"^\| (`.*?`) \| (.*) \|$", table, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    fit(recipe(epochs=2, freeze=0, out=str(tmp_path)))
    line, _ = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert {name: type(value) for name, value in line.items()} == listed
    (kinds,) = {tuple(event) for event in line["events"]}
    assert all(f"`{key}`" in table for key in kinds)
