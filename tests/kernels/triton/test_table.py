"""Files of what was measured on GPUs: read, merged, refused by name and field, and asked for launches."""

import json
import re
import subprocess
import sys

import pytest
import torch
from kernels.problems import choose_linear, choose_on

from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.dispatch.problem import Problem
from spfde.kernels.triton import kernel as kernel_module
from spfde.kernels.triton import table
from spfde.kernels.triton.config import GPUS, Config
from spfde.kernels.triton.table import GpuTable, Key, Measured, launch_of, trying

H200 = GPUS["NVIDIA H200"]
HOW, OTHER = Config(64, 32, 4, 2), Config(256, 64, 8, 3)
KEY = Key("NVIDIA H200", "linear", (16, 32), "bfloat16", (13, 11, 12))
MEASURED = Measured({16: HOW, 64: OTHER}, {32: HOW}, {}, 0.25)
ABOUT = {"spfde": "0.1.0", "torch": "2.11.0", "triton": "3.6.0", "date": "2026-01-02", "command": "spfde bench"}
TABLE = GpuTable(KEY.gpu, ABOUT, {KEY: MEASURED})
SHAPE = (1024, 2048)


@pytest.fixture(autouse=True)
def nothing_else_is_known(monkeypatch, tmp_path):
    monkeypatch.delenv(table.VARIABLE, raising=False)
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(table, "_ADDED", [])
    table.forget()
    yield
    monkeypatch.undo()
    table.forget()


def ask(op="forward", outputs=16, gpu=H200, layout="linear", block=(16, 32), dtype=torch.bfloat16, exact=False):
    return launch_of(op, gpu, layout, block, outputs, dtype, 4096, SHAPE, exact)


def with_break_even(density):
    return GpuTable(KEY.gpu, ABOUT, {KEY: MEASURED._replace(break_even=density)})


def test_a_file_holds_the_table(tmp_path):
    path = tmp_path / "new" / "h200.json"
    TABLE.save(path)
    assert GpuTable.load(path) == TABLE
    assert list(path.parent.iterdir()) == [path]


def test_shipped_files_are_packaged_and_sound():
    folder = table.Path(table.__file__).with_name("tables")
    project = table.Path(__file__).parents[3] / "pyproject.toml"
    assert '"kernels/triton/tables/*.json"' in project.read_text()
    for path in folder.glob("*.json"):
        assert GpuTable.load(path).entries


def test_a_users_file_wins_over_a_shipped_one_and_an_added_one_over_both(tmp_path, monkeypatch):
    assert table.known() == {}
    with_break_even(0.1).save(table.SHIPPED / "h200.json")
    table.forget()
    assert table.known()[KEY].break_even == 0.1
    with_break_even(0.2).save(tmp_path / "mine" / "any.json")
    other = KEY._replace(gpu="another")
    GpuTable("another", ABOUT, {other: MEASURED}).save(tmp_path / "mine" / "other.json")
    (tmp_path / "mine" / "notes.txt").write_text("{")
    for named in ("mine", "mine/any.json"):
        monkeypatch.setenv(table.VARIABLE, str(tmp_path / named))
        table.forget()
        assert table.known()[KEY].break_even == 0.2
        assert (other in table.known()) == (named == "mine")
    with_break_even(0.3).save(tmp_path / "added.json")
    table.add(tmp_path / "added.json")
    assert table.known()[KEY].break_even == 0.3


def test_a_variable_that_names_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(table.VARIABLE, str(tmp_path / "none"))
    table.forget()
    with pytest.raises(ValueError, match="expected SPFDE_GPU_TABLE to name a file or a folder, got '.*none', try"):
        table.known()
    with pytest.raises(FileNotFoundError):
        table.add(tmp_path / "none")


def test_a_damaged_file_that_is_added_changes_nothing(tmp_path):
    TABLE.save(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json"):
        table.add(tmp_path)
    assert table.known() == {}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("the file", lambda v, e: v.pop("gpu")),
        ("the file", lambda v, e: v.update(more=1)),
        ("gpu", lambda v, e: v.update(gpu=3)),
        ("about", lambda v, e: v.update(about=[])),
        ("about", lambda v, e: v["about"].pop("triton")),
        ("about", lambda v, e: v["about"].update(torch=2)),
        ("entries", lambda v, e: v.update(entries={})),
        ("entries[0]", lambda v, e: v.update(entries=[3])),
        ("entries[0]", lambda v, e: e.pop("bucket")),
        ("entries[0]", lambda v, e: e.update(color=1)),
        ("entries[0].layout", lambda v, e: e.update(layout="conv3d")),
        ("entries[0].dtype", lambda v, e: e.update(dtype="float64")),
        ("entries[0].block", lambda v, e: e.update(block=[16])),
        ("entries[0].block", lambda v, e: e.update(block=[16, True])),
        ("entries[0].bucket", lambda v, e: e.update(bucket=[1, 2, 0])),
        ("entries[0].bucket", lambda v, e: e.update(bucket="123")),
        ("entries[0].break_even", lambda v, e: e.update(break_even=1.5)),
        ("entries[0].break_even", lambda v, e: e.update(break_even=float("nan"))),
        ("entries[0].break_even", lambda v, e: e.update(break_even=True)),
        ("entries[0].forward", lambda v, e: e.update(forward=[])),
        ("entries[0].forward", lambda v, e: e.update(forward={"0": [1, 1, 1, 1]})),
        ("entries[0].input_grad", lambda v, e: e.update(input_grad={"x": [1, 1, 1, 1]})),
        ("entries[0].weight_grad.64", lambda v, e: e.update(weight_grad={"64": [128, 64, 4]})),
        ("entries[0].forward.16", lambda v, e: e["forward"].update({"16": [64, 32, 4.0, 2]})),
        ("entries[0].forward.16", lambda v, e: e["forward"].update({"16": [48, 32, 4, 2]})),
    ],
)
def test_a_damaged_file_is_named_with_the_field(tmp_path, field, change):
    path = tmp_path / "h200.json"
    TABLE.save(path)
    values = json.loads(path.read_text())
    change(values, values["entries"][0])
    path.write_text(json.dumps(values))
    told = rf"h200\.json: expected {re.escape(field)} to be .*, got .*, try measuring again with spfde bench --tune"
    with pytest.raises(ValueError, match=told) as error:
        GpuTable.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: .*, try measuring again"):
        GpuTable.load(tmp_path / "x.json")


def test_a_measured_launch_is_used_for_what_it_was_measured_for(monkeypatch):
    monkeypatch.setattr(table, "_ADDED", [TABLE])
    table.forget()
    assert (ask(), ask(outputs=64), ask("input_grad", 32)) == (HOW, OTHER, HOW)
    others = (
        ask(outputs=32), ask("input_grad", 16), ask("weight_grad"), ask(exact=True), ask(layout="conv2d 3x3/1x1"),
        ask(gpu=GPUS["Orin"]), ask(block=(32, 16)), ask(dtype=torch.float16),
    )  # fmt: skip
    assert set(others) == {None}


def test_a_launch_on_trial_goes_before_what_is_known(monkeypatch):
    monkeypatch.setattr(table, "_ADDED", [TABLE])
    table.forget()
    tried = Config(32, 16, 4, 2)
    with pytest.raises(RuntimeError, match="failed"), trying({"forward": tried}):
        assert ask() == ask(exact=True) == tried
        assert ask("input_grad", 32) == HOW
        raise RuntimeError("failed")
    assert ask() == HOW
    with trying({"forward": tried, "input_grad": tried}):
        assert ask() == ask("input_grad") == tried


def test_a_trial_that_no_kernel_took_is_told():
    told = "expected a kernel to take the launch of input_grad, got none that did"
    with pytest.raises(RuntimeError, match=told), trying({"forward": HOW, "input_grad": HOW}):
        ask()
    with pytest.raises(RuntimeError, match="launch of forward, got none"), trying({"forward": HOW}):
        ask("input_grad")


def test_a_table_decides_what_dispatch_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_module, "why_not", lambda device: None)
    monkeypatch.setattr(kernel_module, "gpu_here", lambda: H200)
    args = ("auto", "cuda", torch.bfloat16, 4096, SHAPE, SHAPE[0] * SHAPE[1] // 4, (16, 32))
    dispatch.forget()
    predicted = choose_linear(*args)
    assert (predicted.kernel, predicted.reason[:9]) == ("dense", "predicted")
    try:
        for density, kernel in ((0.25, "triton"), (0.24, "dense")):
            with_break_even(density).save(tmp_path / "mine.json")
            dispatch.use_gpu_table(tmp_path / "mine.json")
            choice = choose_linear(*args)
            assert choice.kernel == kernel
            assert choice.reason == f"measured on NVIDIA H200: break-even at density {density:.2f}"
    finally:
        dispatch.forget()


def test_sizes_share_an_entry_within_a_halving():
    problem = Problem(4096, SHAPE, 16, (16, 32))
    assert table.key_of(H200, problem, torch.bfloat16) == KEY
    for same in (problem._replace(batch=8191), problem._replace(shape=(2047, 2048))):
        assert table.key_of(H200, same, torch.bfloat16) == KEY
    assert table.key_of(H200, problem._replace(batch=8192), torch.bfloat16) != KEY


def test_a_choice_that_was_measured_never_takes_a_slower_kernel(monkeypatch):
    monkeypatch.setattr(table, "known", lambda: {KEY: MEASURED._replace(break_even=0.0)})
    for bucket in range(0, 193, 8):
        problem = Problem(4096, SHAPE, bucket, (16, 32))
        assert choose_on(problem, torch.bfloat16, None, H200).kernel == "dense"


def test_no_table_is_read_before_a_gpu_is_asked_about():
    program = """
import os
os.environ["SPFDE_GPU_TABLE"] = "/nowhere"
import torch, spfde
from spfde.kernels.triton import table
spfde.sparsify(torch.nn.Linear(64, 64), 0.5, pattern="block:16x16")(torch.randn(8, 64)).sum().backward()
assert table.known.cache_info().misses == 0
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
