"""The page of online fine-tuning shows the table of its record, of all arms and the same seeds."""

import json
import re
from pathlib import Path

import online

ROOT = Path(__file__).parents[2]


def test_the_table_is_the_records():
    page = (ROOT / "docs" / "freezing" / "online.md").read_text(encoding="utf-8")
    (record,) = set(re.findall(r"benchmarks/results/(online-[\w.-]+\.json)", page))
    kept = json.loads((ROOT / "benchmarks" / "results" / record).read_text(encoding="utf-8"))
    rows = [online.Row(**row) for row in kept["rows"]]
    assert online.table(rows) in page and kept["command"] in page
    assert [row.arm for row in rows] == [arm.name for arm in online.ARMS] * 6
