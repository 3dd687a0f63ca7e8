"""Figures read from cells, and cells as text."""

from __future__ import annotations

import pytest
from benchmarks.records import cell, record
from record import Record
from table import block, summary


def test_speedup_is_over_the_fastest_dense_way():
    some = cell(dense=10, dense_compiled=8, native=2)
    assert some.best_dense == "dense compiled"
    assert some.speedup("native") == pytest.approx(4)
    assert some.efficiency("native") == pytest.approx(0.4)


def test_sparseprop_is_measured_against_our_native_kernel():
    assert cell(dense=10, native=2, auto=1, sparseprop=5).over_sparseprop == pytest.approx(2.5)


def test_what_was_not_timed_has_no_figures():
    some = cell(dense=10, absent={"native": "no such pattern"})
    assert some.speedup("native") is some.efficiency("native") is some.over_sparseprop is None
    assert cell().best_dense is None
    assert cell().speedup("native") is None


def test_targets_apply_where_they_were_agreed():
    ways = {"dense": 10, "native": 2, "sparseprop": 5}
    assert [(what, aim) for what, _, aim in cell(0.9, **ways).verdicts()] == [("dense", 3.5), ("SparseProp", 3)]
    assert [(what, aim) for what, _, aim in cell(0.95, **ways).verdicts()] == [("dense", 6)]
    assert [(what, aim) for what, _, aim in cell(0.9, "block:4x1", **ways).verdicts()] == [("dense", 5.5)]
    assert list(cell(0.7, **ways).verdicts()) == []


def test_a_record_survives_its_file(tmp_path):
    before = record(cell(dense=10, native=2), cell(0.8, absent={"native": "because"}))
    path = tmp_path / "new folder" / "layers.json"
    before.write(path)
    after = Record.read(path)
    assert after.cells == list(before.cells)
    assert (after.machine, after.command, after.rounds) == (before.machine, before.command, before.rounds)


def test_a_block_shows_figures_and_verdicts():
    text = block([cell(0.9, dense=10, native=2, sparseprop=5), cell(0.95, dense=10, native=2.5)])
    head, names, first, second = text.strip().splitlines()
    assert head == "conv 3x3 8x8 4px b2 · unstructured · best dense: dense"
    assert "masked" not in names and "torch csr" not in names
    assert first.split() == ["90%", "10.00", "5.00x", "0.50", "3.5x", "pass", "2.00x", "2.50x", "FAIL", "±5%"]
    assert second.split() == ["95%", "10.00", "4.00x", "0.20", "6x", "FAIL", "-", "-", "±5%"]


def test_a_block_says_what_is_absent_and_why():
    text = block(
        [cell(0.9, absent={"native": "no kernel", "auto": "no kernel"}), cell(0.8, absent={"native": "no kernel"})]
    )
    assert text.strip().splitlines() == ["conv 3x3 8x8 4px b2 · unstructured", "  absent: native, auto: no kernel"]


def test_the_summary_lists_misses_worst_first_and_counts_the_rest():
    lines = summary([cell(0.6, dense=10, native=5), cell(0.8, dense=10, native=6), cell(0.9, dense=10, native=8)])
    *_, counts, worst, next_worst = lines.splitlines()
    assert counts == "targets: 1 met, 2 missed, 1 not timed"
    assert worst.strip() == "conv 3x3 8x8 4px b2 · unstructured · 90%: 1.25x dense, target 3.5x"
    assert "80%: 1.67x dense" in next_worst


def test_the_summary_averages_layers_of_a_group():
    lines = summary([cell(0.9, dense=8, native=4), cell(0.9, dense=8, native=1)]).splitlines()
    assert lines[2].split() == ["unstructured", "conv", "3x3", "90%", "4.00x", "(0.40)"]


def test_the_summary_names_a_group_that_was_not_timed():
    assert "absent" in summary([cell(0.9, "block:4x1", absent={"native": "why"})]).splitlines()[2]
