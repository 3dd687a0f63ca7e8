"""The figures of a record, and the targets that it is held to."""

import json
from dataclasses import replace

import pytest
import targets
from benchmarks.records import cell, of_case, record, timing
from cases import BIG, Case, gpu_layers, in_blocks
from record import Cell, Record, line
from table import block, summary
from targets import GPU_TARGETS


def test_figures_are_over_the_fastest_dense_variant():
    some = cell(dense=10, dense_last=8, native=2, sparseprop=4)
    assert (some.best_dense(), some.speedup(), some.speedup("sparseprop")) == ("dense last", 4, 2)
    assert some.efficiency() == pytest.approx(0.4)
    assert some.over_sparseprop == 2
    nothing = cell(dense=10)
    assert (nothing.speedup(), nothing.efficiency(), nothing.over_sparseprop, nothing.missed) == (None,) * 4


def test_a_line_warns_of_launches_choices_and_failures():
    case = in_blocks(BIG, 64, 0.1)
    some = of_case(case, "masked", forward=2.0, step=4.0)
    some = replace(
        some, seconds={**some.seconds, "masked": {"step": timing(8.0)}}, host={"triton": {"forward": timing(3.0)}},
        failed={"dense": "lost"},
    )  # fmt: skip
    assert (some.missed, some.launch_bound) == (2.0, {"forward": 1.5})
    for word in ("forward 5.00x", "step 2.50x", "host 1.5 x device", "auto takes masked: 2.00 x", "FAILED dense: lost"):
        assert word in line(some)


def test_a_record_survives_its_file_also_one_without_parts(tmp_path):
    kept = record(cell(dense=10, native=2, absent={"sparseprop": "not installed"}))
    kept.write(tmp_path / "new" / "a.json")
    assert Record.read(tmp_path / "new" / "a.json") == replace(kept, cells=list(kept.cells), unfinished=[])
    values = json.loads((tmp_path / "new" / "a.json").read_text())
    [old] = values["cells"]
    old["seconds"] = {name: parts["step"] for name, parts in old["seconds"].items()}
    for later in ("dtype", "name", "host", "failed", "auto", "reason"):
        del old[later]
    del values["unfinished"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Record.read(tmp_path / "old.json").cells[0].seconds == kept.cells[0].seconds
    for text in ("", "[]", '{"machine": {}}', '{"cells": [1]}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(SystemExit, match=r"x\.json"):
            Record.read(tmp_path / "x.json")


def test_the_targets_of_a_cpu_are_passed_or_missed():
    cells = [cell(0.9, dense=8, native=2), cell(0.95, dense=8, native=2), cell(0.8, absent={"native": "no such"})]
    text = "\n".join((block(cells), summary(cells)))
    for word in ("4.00x", "pass", "FAIL", "no such", "1 met, 1 missed"):
        assert word in text
    assert [aim for _, _, aim in targets.cpu_verdicts(cell(0.9, native=1, dense=1))] == [3.5, 3.0]
    for aims in targets.CPU_TARGETS.values():
        assert list(aims) == sorted(aims)


def verdict(index, *cells):
    found = targets.verdicts(record(*cells))[index]
    return found.measured, found.met


def test_a_target_of_a_gpu_is_met_or_not_by_its_own_case():
    big = GPU_TARGETS[0].case
    assert verdict(0, of_case(big, step=4.0)) == ("2.50x", True)
    assert verdict(0, of_case(big, step=4.1)) == ("2.44x", False)
    assert verdict(0, of_case(big, forward=1.0)) == verdict(0, of_case(replace(big, sparsity=0.95), step=1.0))
    assert verdict(0) == ("not measured", None)
    frozen = next(i for i, target in enumerate(GPU_TARGETS) if target.over)
    assert verdict(frozen, of_case(GPU_TARGETS[frozen].case, frozen_prefix=2.0)) == ("5.00x", True)
    cells = [of_case(big, "triton", step=11.0), of_case(replace(big, dtype="tf32"), "triton", step=5.0)]
    assert verdict(-1, *cells)[1] is True and "0.91x" in verdict(-1, *cells)[0]


@pytest.mark.parametrize(
    ("gains", "found"),
    [({0.6: 0.5, 0.8: 2.0}, ("", 0.7)), ({0.6: 2.0}, ("below", 0.6)), ({0.6: 0.5}, ("above", 0.6)), ({}, None)],
)
def test_a_break_even_is_found_between_what_was_measured(gains, found):
    cells = [of_case(in_blocks(BIG, 64, 1 - sparsity), forward=10 / gain) for sparsity, gain in gains.items()]
    got = targets.break_even(record(*cells), in_blocks(BIG, 64, 0.4), "forward")
    assert got == (found and (found[0], pytest.approx(found[1])))


def test_every_case_of_a_gpu_is_run_once_those_of_targets_first():
    asked = [target.case for target in GPU_TARGETS]
    names = [str(case) for case in gpu_layers(asked)]
    assert len(names) == len(set(names)) > 100
    first = list(dict.fromkeys(map(str, asked)))
    assert names[: len(first)] == first
    assert str(Case(BIG, dtype="bfloat16", clustered=True)).endswith("unstructured, 10% of the tiles 20% full")


def test_a_page_shows_machine_targets_failures_choices_and_cases():
    case = in_blocks(BIG, 64, 0.1)
    cells: list[Cell] = [
        replace(of_case(case, "triton", step=4.0), failed={"torch bsr": "lost"}),
        of_case(replace(case, dtype="tf32")),
    ]
    text = targets.page(replace(record(*cells, gpu="NVIDIA H200"), unfinished=["another"]))
    for word in ("NVIDIA H200", "2.50x", "lost", str(case), "another", "Nowhere"):
        assert word in text
