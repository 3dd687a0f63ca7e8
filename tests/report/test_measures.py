"""The figures: each against a calculation by hand, and how numbers are written."""

from __future__ import annotations

import json

import pytest
import shares

from spfde._words import count, duration, percent, points, ratio, shortened, size, work
from spfde.report import compare
from spfde.report.measures import time_to


def figures(report):
    return {row.name: row.values for section in report.sections for row in section.rows}


def test_figures_by_hand(make_run):
    dense = make_run("dense", "dense", accuracy=0.97, flops=3e12)
    sparse = make_run("sparse", accuracy=0.95, flops=5e11)
    found = figures(compare([sparse, dense]))
    assert found["test accuracy"] == ("97.00%", "95.00%")
    # dense: 6 * (8 + 0.3 + 0.05); sparse: 6 * (4.2 + 0.55), of which the last two epochs save 8% of the 4.2
    assert found["training time"] == ("50.1 s", "27.8 s")
    assert found["total time"] == ("54.3 s", "31.4 s")
    assert found["speed-up"] == ("1.00x", "1.80x")
    assert found["training FLOPs"] == ("18 TFLOP", "2.92 TFLOP")
    assert found["FLOPs saved"] == ("1.00x", "6.16x")
    assert found["first epoch"] == ("8.35 s", "4.75 s")
    assert found["last epoch"] == ("8.35 s", "4.41 s")
    # levers 0.2, checkpoint 0.1 and other 0.05 of each epoch
    assert found["overhead"] == (f"{0.9 / 50.1:.1%}", f"{2.1 / 27.828:.1%}")
    assert found["peak memory"] == ("300 MiB", "300 MiB")
    assert found["sparsity"] == ("0.0%", "90.0%")
    assert found["sparse layers"] == ("-", "3 of 3")
    assert found["frozen blocks"] == ("-", "1 (from epoch 4)")
    assert found["sieved samples"] == ("-", "20.0%")
    assert found["time to 95.00%"][1] == found["training time"][1]


def test_the_attribution_adds_up_to_the_total(compared):
    report, _ = compared
    (section,) = [s for s in report.sections if s.title == "Where the time went"]
    for index, run in enumerate(report.runs):
        seconds = [float(row.values[index].split()[0]) for row in section.rows]
        assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.04)
        assert seconds[-1] == pytest.approx(run.total_seconds, abs=0.005)
        assert section.rows[-1].values[index].endswith("(100.0%)")


def test_every_figure_has_a_meaning_and_a_value_for_each_run(compared):
    report, _ = compared
    rows = [row for section in report.sections for row in section.rows]
    assert len({row.name for row in rows}) == len(rows)
    assert all(len(row.values) == 2 and row.meaning.endswith(".") for row in rows)


def test_time_to_an_accuracy(make_run):
    path = make_run("a")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line, accuracy in zip(lines, (0.1, 0.8, 0.6, 0.9, 0.85, 0.9), strict=True):
        line["test_accuracy"] = accuracy
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = compare([path]).runs[0]
    assert time_to(run, 0.8) == run.clock[1]
    assert time_to(run, 0.9) == run.clock[3]
    with pytest.raises(ValueError, match="0.95"):
        time_to(run, 0.95)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.000 s"),
        (0.9994, "0.999 s"),
        (9.99, "9.99 s"),
        (9.996, "10.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.7, "2 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7629, "2 h 07 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_other_words():
    assert [ratio(v) for v in (0.514, 1.706, 9.996, 13.99, 99.96, 140.2)] == [
        "0.51x",
        "1.71x",
        "10.0x",
        "14.0x",
        "100x",
        "140x",
    ]
    assert [size(v) for v in (2**20, 412 * 2**20, 999.6 * 2**20, 1.5 * 2**30)] == [
        "1 MiB",
        "412 MiB",
        "1000 MiB",
        "1.50 GiB",
    ]
    assert [work(v) for v in (12, 3.2e6, 2.34e13, 1e18)] == ["12 FLOP", "3.2 MFLOP", "23.4 TFLOP", "1 EFLOP"]
    assert (percent(0.12345), percent(0.12345, 2)) == ("12.3%", "12.35%")
    assert [points(v) for v in (-0.01, 0.0123, 0)] == [
        "1.0 percentage point",
        "1.2 percentage points",
        "0.0 percentage points",
    ]
    assert [shortened("layer1.0.conv1", n) for n in (14, 10)] == ["layer1.0.conv1", "layer1...."]
    assert [shortened("layer1.0.conv1", n, end=True) for n in (14, 10)] == ["layer1.0.conv1", "...0.conv1"]
    assert [count(n, "epoch") for n in (1, 2, 8000)] == ["1 epoch", "2 epochs", "8,000 epochs"]


def test_the_shares_of_the_training_time_are_printed(make_run, capsys):
    parts = {"kernels": 4.0, "step": 4.0, "data": 1.0, "levers": 0.25, "evaluation": 6.0, "checkpoint": 0.5}
    path = make_run("one", epochs=2, seconds=parts, method="dense")  # and 0.05 s of other
    shares.main([str(path)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{path}: 18.60 s of training, without evaluation and checkpoint"
    assert ["step", "8.00", "s", "43.01%"] in [line.split() for line in lines]
    assert lines[-1].split()[:4] == ["overhead", "1.60", "s", "8.60%"]
