"""What is read from the record of a GPU. All figures here are made up."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from gpu import plot, targets
from gpu.cases import NETWORKS, TARGETS, Case, cases
from gpu.record import Cell, Record

ABOUT = {"gpu": "Test GPU", "date": "2026-01-02T03:04", "torch": "0", "before": {"clocks.sm": "1 MHz"}, "after": {}}
BIG = TARGETS[0].case


def cell(case: Case = BIG, dense: float = 10.0, auto: str = "spfde", **ours: float) -> Cell:
    """Parts are keywords with _ for a blank; dense takes `dense` ms for each of them and for a step, ours as given."""
    parts = {part.replace("_", " "): [ms] for part, ms in ours.items()}
    return Cell(case, {"spfde": parts, "cublas": {part: [dense] for part in (*parts, "step")}}, {}, auto=auto)


def record(*cells: Cell) -> Record:
    return Record(ABOUT, cells)


def verdict_of(index: int, *cells: Cell) -> tuple[str, bool | None]:
    verdict = targets.verdicts(record(*cells))[index]
    return verdict.measured, verdict.met


def index_of(what: str, part: str) -> int:
    [first, *_] = [i for i, t in enumerate(TARGETS) if what in t.what and t.part == part]
    return first


def test_the_targets_are_those_that_were_agreed():
    asked = [(v.asked, v.what) for v in targets.verdicts(record())]
    assert [a for a, what in asked if what == "training step"] == ["at least 2.5x", "at least 1.5x", "at least 4x"]
    assert [a for a, what in asked if "forward, break" in what] == ["at most 60%", "at most 75%", "at most 85%"]
    assert [a for a, what in asked if "weight gradient" in what] == ["at most 70%", "at most 80%"]
    assert [a for a, what in asked if "every block" in what] == ["at least 0.85x"] * 2
    assert [a for a, what in asked if "frozen" in what] == ["at least 3x"]
    assert [a for a, what in asked if "ResNet" in what] == ["at least 1.1x"] * 4
    assert asked[-1] == ("at least 0.9x", 'training step, kernel = "auto"')
    assert len(asked) == 3 + 3 + 2 + 2 + 1 + 4 + 1
    assert {t.case for t in TARGETS} <= set(cases())


def test_an_empty_record_measured_nothing():
    assert {(v.measured, v.met) for v in targets.verdicts(record())} == {("not measured", None)}


def test_a_target_is_met_or_not_by_its_own_case():
    assert verdict_of(0, cell(step=4.0)) == ("2.50x", True)
    assert verdict_of(0, cell(step=4.1)) == ("2.44x", False)
    assert verdict_of(0, cell(forward=1.0)) == ("not measured", None)
    assert verdict_of(0, cell(replace(BIG, density=0.05), step=1.0)) == ("not measured", None)
    assert verdict_of(0, cell(), cell(step=4.0)) == ("2.50x", True)


def test_a_frozen_layer_is_measured_against_a_dense_step():
    at = index_of("frozen", "frozen prefix")
    assert verdict_of(at, cell(dense=9, frozen_prefix=3)) == ("3.00x", True)
    parts = {"spfde": {"frozen prefix": [3.0]}, "cublas": {"frozen prefix": [9.0], "step": [6.0]}}
    assert verdict_of(at, Cell(BIG, parts, {})) == ("2.00x", False)


@pytest.mark.parametrize(("gains", "measured", "met"), [
    ({0.4: 1.5}, "below 60% (1.50x at 60%)", True),
    ({0.4: 0.5}, "above 60% (0.50x at 60%)", False),
    ({0.4: 2.0, 0.5: 0.5}, "55% (2.00x at 60%)", True),
    ({0.4: 0.5, 0.2: 2.0}, "70% (0.50x at 60%)", False),
    ({0.4: 0.5, 0.2: 2.0, 0.1: 0.8, 0.05: 1.0}, "95% (0.50x at 60%)", False),
    ({0.2: 0.9, 0.1: 1.1}, "85% (not measured at 60%)", None),
])  # fmt: skip
def test_a_break_even_is_found_between_what_was_measured(gains, measured, met):
    cells = [cell(replace(BIG, density=density), dense=gain, forward=1.0) for density, gain in gains.items()]
    other = [cell(replace(BIG, block=32, density=0.5), forward=99.0), Cell(NETWORKS[0], {}, {})]
    assert verdict_of(index_of("forward", "forward"), *cells, *other) == (measured, met)


def test_auto_is_judged_where_it_fares_worst():
    slow = cell(replace(BIG, density=0.4), step=12.5)
    assert verdict_of(-1, cell(step=5), slow) == (f"0.80x at worst of 2: {slow.case}", False)
    assert verdict_of(-1, cell(step=5), cell(auto="spfde masked", step=5)) == (f"2.00x at worst of 1: {BIG}", True)


FAILED = replace(cell(step=4.0), failed={"spfde masked": "RuntimeError: no"})


def test_a_page_shows_machine_targets_failures_choices_cases():
    device = {"spfde": {"step": [2.0]}, "spfde masked": {"step": [5.0]}, "cublas": {"step": [4.0]}}
    host, absent = {"spfde": {"step": [3.0]}}, {"torch bsr": "none | here"}
    wrong = Cell(BIG, device, host, absent, auto="spfde masked", reason="a guess")
    page = targets.page(Record(ABOUT, [FAILED, wrong], ["the rest"]))
    assert page.startswith("# Test GPU, 2026-01-02\n")
    assert "- torch: 0\n" in page and "- before: clocks.sm 1 MHz\n" in page and "- after" not in page
    assert f"## Failed\n\n- {BIG}, spfde masked: RuntimeError: no\n" in page
    assert f"- {BIG}: took spfde masked (a guess), 2.50 x the time of our fastest" in page
    rows = [line.split("|") for line in page.split("## Speed-up")[1].splitlines() if line.startswith("|")]
    assert [name.strip() for name in rows[0][1:-1]] == [
        "case", "step", "masked step", "torch bsr forward", "torch 2:4 forward", "auto", "notes",
    ]  # fmt: skip
    assert [value.strip() for value in rows[3][2:-1]] == [
        "2.00x", "0.80x", "-", "-", "spfde masked", "no torch bsr: none / here; step: host 1.5 x device",
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    assert page.endswith("## Not reached\n\n- the rest\n")


def test_a_page_without_trouble_says_so():
    page = targets.page(record(cell(step=4.0)))
    assert "Nowhere." in page and "Failed" not in page and "Not reached" not in page


def test_the_program_prints_targets_and_writes_the_page(tmp_path, capsys):
    path = Record(ABOUT, [FAILED]).write(tmp_path)
    targets.main([str(path)])
    printed = capsys.readouterr().out
    assert "| 2.50x" in printed and "RuntimeError: no" in printed
    assert printed.strip() in path.with_suffix(".md").read_text()


def test_the_page_needs_no_torch():
    code = "import sys; import gpu.targets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "benchmarks"}).returncode == 0


def test_a_plot_has_a_line_per_block_and_the_targets(tmp_path):
    cells = [cell(replace(BIG, block=b, density=d), step=2.0, forward=5.0) for b in (64, 32) for d in (0.1, 0.4)]
    forward, _, _, step = plot.draw(record(*cells, Cell(NETWORKS[0], {}, {}))).axes
    lines = [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in step.get_lines()]
    assert ("block 64", [0, 1], [5, 5]) in lines and ("block 32", [0, 1], [5, 5]) in lines
    assert [(x, y) for name, x, y in lines if name.startswith("_") and len(x) == 1] == [([1], [2.5]), ([1], [1.5])]
    assert [tick.get_text() for tick in step.get_xticklabels()] == ["0.4", "0.1"]
    assert forward.get_title(loc="left") == "4096x4096 bfloat16, forward"
    path = record(*cells).write(tmp_path)
    plot.main([str(path)])
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(SystemExit, match="expected a record with linear layers beside dense ones, got none"):
        plot.draw(record(Cell(NETWORKS[0], {}, {}), Cell(BIG, {}, {})))


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"machine": {}, "cells": [{"case": {}}]}'])
def test_what_is_no_record_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    for program in (targets, plot):
        with pytest.raises(SystemExit, match="expected .*record.json to be a record of gpu.run, got .*, try") as told:
            program.main([str(path)])
        assert "\n" not in str(told.value)


def test_a_record_is_plain_json(tmp_path):
    path = Record(ABOUT, [cell(step=4.0)]).write(tmp_path)
    assert json.loads(path.read_text())["cells"][0]["case"]["density"] == 0.1
