"""Runs of language models side by side: perplexity in the place of accuracy, lower is better."""

import json
import math

import pytest

from spfde._words import duration
from spfde.report import compare


def language(make_run, name, method, losses):
    """A run whose test loss went as `losses` have it."""
    path = make_run(name, method, epochs=len(losses))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    told = [{**line, "task": "language", "test_loss": loss} for line, loss in zip(lines, losses, strict=True)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return path


@pytest.fixture
def runs(make_run):
    return (
        language(make_run, "dense", "dense", [2.0, 1.2, math.log(3.0)]),
        language(make_run, "sparse", "spfde", [2.0, math.log(3.06), 1.3]),
    )


def test_the_verdict_the_table_and_the_page_tell_perplexity(runs):
    report = compare(runs)
    (verdict,) = report.verdicts
    assert "to a test perplexity 22.3% higher" in verdict.headline
    assert "test perplexity is 3.669 against 3.000." in str(verdict)
    assert "another seed moves perplexity too" in str(verdict) and "accura" not in str(verdict)
    rows = {row.name: row for section in report.sections for row in section.rows}
    assert rows["test perplexity"].values == ("3.000", "3.669")
    assert rows["best test perplexity"].values == ("3.000 (epoch 2)", "3.060 (epoch 1)")
    assert rows["bits a token"].values == ("1.585", "1.876")
    assert "time to 3.060" in rows and "lowest perplexity" in rows["time to 3.060"].meaning
    dense, sparse = (run.clock for run in report.runs)
    assert rows["time to 3.060"].values == (duration(dense[2]), duration(sparse[1]))
    page = report.html()
    assert "Test perplexity against training time" in page and "Lower is better." in page
    assert "+22.3%" in page and "test perplexity against dense" in page
    assert "a test perplexity of 3.000 after" in compare(runs[:1]).verdicts[0].headline


def test_perplexities_that_read_alike_are_called_the_same(make_run):
    report = compare(
        [language(make_run, name, name, [2.0, loss]) for name, loss in (("dense", 1.1), ("spfde", 1.1003))]
    )
    assert "to the same test perplexity" in report.verdicts[0].headline


def test_a_loss_that_was_not_finite_is_told(make_run):
    report = compare([language(make_run, name, name, [2.0, loss]) for name, loss in (("dense", 1.1), ("spfde", None))])
    assert "test perplexity is inf against 3.004" in str(report.verdicts[0])


def test_runs_of_different_tasks_and_tasks_it_does_not_know_are_refused(runs, make_run):
    with pytest.raises(
        ValueError, match=r"expected runs of one task, got language in .* and classification in .*, try"
    ):
        compare([*runs, make_run("images")])
    path = runs[0] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"language"', '"chess"'))
    with pytest.raises(ValueError, match="expected one of classification, language in .*, task, got 'chess', try the"):
        compare(runs)
