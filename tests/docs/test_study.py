"""The study's page shows the tables of the records that it names, and no other."""

import re
from pathlib import Path

import pytest
import study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


ALL = (list(study.METHODS), study.SPARSITIES)
RECORDS = {
    "study-amd-epyc-avx2-2026-11-21.jsonl": (study.Setting(), *ALL),
    "study-resnet20-amd-epyc-avx2-2026-11-21.jsonl": (study.Setting(depth=20, epochs=15), *ALL),
    "study-optimization-amd-epyc-avx512-2026-11-30.jsonl": (
        study.Setting(),
        [study.DENSE, "RigL", "DST-EE", *study.FROM_DENSE],
        (0.9, 0.95),
    ),
}


def test_the_page_names_every_record():
    assert set(re.findall(r"benchmarks/results/(study-[\w.-]+\.jsonl)", PAGE)) == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_the_table_is_the_records(name):
    setting, methods, sparsities = RECORDS[name]
    runs = study.read(ROOT / "benchmarks" / "results" / name, setting)
    assert study.table(runs) in PAGE
    assert {run.case for run in runs} == set(study.cases(3, sparsities, methods))
