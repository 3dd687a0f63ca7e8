"""The study's page shows the table of the record that it names, and no other."""

import re
from pathlib import Path

import study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def test_the_table_is_the_records():
    (record,) = set(re.findall(r"benchmarks/results/study-[\w.-]+\.jsonl", PAGE))
    runs = study.read(ROOT / record, study.Setting())
    assert study.table(runs) in PAGE
    assert {run.case for run in runs} == set(study.cases(3, study.SPARSITIES, list(study.METHODS)))
