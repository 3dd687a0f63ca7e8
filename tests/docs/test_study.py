"""The study's page shows the tables of the records that it names, and no other."""

import re
from pathlib import Path

import pytest
import study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


RECORDS = {
    "study-amd-epyc-avx2-2026-11-21.jsonl": study.Setting(),
    "study-resnet20-amd-epyc-avx2-2026-11-21.jsonl": study.Setting(depth=20, epochs=15),
}

# Runs go seed by seed, so that one cut short has whole tables of fewer seeds.
CUT_SHORT = {
    "study-optimization-amd-epyc-avx512-2026-11-30.jsonl": [study.DENSE, "RigL", "DST-EE", *study.BY_OPTIMIZATION],
}
RECORDS |= dict.fromkeys(CUT_SHORT, study.Setting())


def test_the_page_names_every_record():
    assert set(re.findall(r"benchmarks/results/(study-[\w.-]+\.jsonl)", PAGE)) == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_the_table_is_the_records(name):
    runs = study.read(ROOT / "benchmarks" / "results" / name, RECORDS[name])
    assert study.table(runs) in PAGE
    if name in CUT_SHORT:
        assert [run.case for run in runs] == study.cases(3, (0.9, 0.95), CUT_SHORT[name])[: len(runs)]
        return
    assert {run.case for run in runs} == set(study.cases(3, study.SPARSITIES, list(study.METHODS)))
