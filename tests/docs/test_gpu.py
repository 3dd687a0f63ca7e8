"""docs/gpu.md shows the targets as the benchmark knows them; its example runs, and its break-evens are the model's."""

from pathlib import Path

from gpu.record import Record
from gpu.targets import HEAD, table, verdicts

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_targets_are_those_of_the_benchmark():
    section = PAGE.split("## Targets")[1].split("\n## ")[0]
    assert table(HEAD, [verdict.row for verdict in verdicts(Record({}, []))]) in section
