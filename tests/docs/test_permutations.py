"""The page of permutations shows the table of its record, which is whole."""

import re
from pathlib import Path

import permutations

ROOT = Path(__file__).parents[2]


def test_the_table_is_the_records():
    page = (ROOT / "docs" / "topology" / "permutations.md").read_text(encoding="utf-8")
    (record,) = set(re.findall(r"benchmarks/results/(permutations-[\w.-]+\.jsonl)", page))
    runs = permutations.read(ROOT / "benchmarks" / "results" / record, permutations.Setting())
    assert permutations.table(runs) in page
    assert {run.case for run in runs} == set(permutations.cases(3, permutations.SPARSITIES, permutations.PATTERNS))
