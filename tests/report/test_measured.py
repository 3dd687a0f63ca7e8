"""Files of bench, plan and profile on the page: drawn, escaped, alone or beside runs, and refused where damaged."""

import json
import re
from dataclasses import replace

import pytest
from bench.test_record import DENSE, LAST, RECORD, SPARSE
from typer.testing import CliRunner

from spfde import bench, cli
from spfde.planning import LayerPlan, Lever, Plan
from spfde.report import compare

NETWORK = {"kind": "network", "subject": "<net> on 2", "flops": {"step": 600}}
PHASES = {"step": (4.0,) * 6, "forward": (1.0,) * 6, "backward": (3.0,) * 6}
BENCH = replace(
    RECORD,
    rows=(
        DENSE, LAST, SPARSE, replace(SPARSE, sparsity=0.5, density=0.5),
        replace(DENSE, seconds=PHASES, **NETWORK),
        replace(SPARSE, seconds={**PHASES, "step": (2.0,) * 6, "frozen": (1.0,) * 6}, **NETWORK),
        replace(SPARSE, sparsity=0.95, seconds={}, absent={"all": "MemoryError"}, **NETWORK),
    ),
)  # fmt: skip
PLAN = Plan(
    "a board", "2026-11-29 by hand", 4, {"sparsity": 0.9}, (
        LayerPlan("conv1", "Conv2d", (8, 3, 3, 3), 0.0, "dense", "stays dense", 1e-3, 1e-3, None, "measured"),
        LayerPlan("conv2", "SparseConv2d", (8, 8, 3, 3), 0.9, "native", "x", 3e-3, 1e-3, 0.6, "roofline"),
    ), 5e-3, 3e-3, 2e-3, (3e-3, 2e-3), 2.5e-3, 0.8, (Lever("weight sparsity", 0.8, 0.4, 10**6, "of a dense step"),),
    {"sparse layers": 2e-3, "norms": 1e-3}, 0.3, ("conv2 <gains>",),
)  # fmt: skip
PROFILE = {"model": "resnet20", "kinds": {"model": {"norm": 1e-3}, "dense": {"norm": 2e-3}}, "batch": 4, "threads": 2}


@pytest.fixture
def files(tmp_path):
    BENCH.save(tmp_path / "a-bench.json")
    PLAN.save(tmp_path / "a-plan.json")
    (tmp_path / "a-profile.json").write_text(json.dumps(PROFILE))
    return [tmp_path / f"a-{name}.json" for name in ("bench", "plan", "profile")]


def test_a_page_of_files_alone(files, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(cli.build("report"), ["report", *map(str, files), "--out", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    for part in ("Speed-up against sparsity", "break-even", "Layers and sparsity", "A training step", "A planned step",
                 "A profiled step", "MemoryError", "prefers-color-scheme", "@media print", "viewport"):  # fmt: skip
        assert part in text
    assert "&lt;net&gt;" in text and "<net>" not in text and "conv2 &lt;gains&gt;" in text
    assert not re.search(r"(src|href)=\"http", text) and "<script" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_headline_says_what_was_measured_else_planned_else_what_is_there(files):
    bench_file, plan_file, profile_file = files
    measured, planned, named = (
        re.search("<h1>(.*?)</h1>", compare(list(given)).html())[1]
        for given in ([plan_file, bench_file], [profile_file, plan_file], [profile_file])
    )
    gains = {BENCH.speedup(row).value for row in BENCH.rows if row.kind == "network" and not row.dense and row.seconds}
    least, most = (f"{each(gains):.2f}x" for each in (min, max))
    gain = least if least == most else f"{least} to {most}"
    assert f"measured: {gain} as fast as dense, " in measured and measured.endswith(" of the weights zero")
    assert planned == f"Planned: {PLAN.speedup:.2f}x as fast as dense training" and named == "a-profile"


def test_beside_runs(files, make_run):
    text = compare([make_run("dense", "dense"), make_run("sparse"), *files]).html()
    assert "How it went" in text and "Bench: a-bench" in text and "Plan: a-plan" in text


def test_an_unfinished_bench_is_called_one(tmp_path):
    replace(BENCH, finished=False).save(tmp_path / "cut.json")
    assert "Unfinished" in compare([tmp_path / "cut.json"]).html()
    bench.Record({}, "2026-11-29", "spfde bench", 3).save(tmp_path / "empty.json")
    assert "Unfinished" in compare([tmp_path / "empty.json"]).html()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "spfde bench", "version": 2}', '{"kinds": 3}'])
def test_a_file_that_is_none_of_them(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        compare([path])
