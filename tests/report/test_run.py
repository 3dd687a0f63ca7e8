"""Reading run directories: what a run holds, and every way one can be wrong."""

from __future__ import annotations

import json
import math

import pytest

from spfde.report.run import read


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_line(path, index, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[index])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_adds_up(make_run):
    run = read(make_run("a"))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(run.epochs) == 6
    assert run.total_seconds == pytest.approx(sum(line["total_seconds"] for line in lines))
    training = [
        sum(s for part, s in line["seconds"].items() if part not in ("evaluation", "checkpoint")) for line in lines
    ]
    assert run.training_seconds == pytest.approx(sum(training))
    assert run.clock == pytest.approx([sum(training[: i + 1]) for i in range(6)])
    assert run.work[-1] == pytest.approx(sum(line["flops"] for line in lines))
    assert sum(run.seconds.values()) == pytest.approx(run.total_seconds)
    rest = sum(s for part, s in run.seconds.items() if part not in ("levers", "checkpoint", "other"))
    assert run.overhead_seconds == pytest.approx(run.total_seconds - rest)
    assert run.memory == max(line["memory"] for line in lines)


def test_the_best_epoch_is_the_first_of_equals(make_run):
    path = make_run("a")
    for index, accuracy in enumerate((0.5, 0.9, 0.7, 0.9, 0.8, 0.85)):
        edit_line(path / "metrics.jsonl", index, lambda e, a=accuracy: e.update(test_accuracy=a))
    run = read(path)
    assert (run.best.epoch, run.last.test_accuracy) == (1, 0.85)


def test_keys_that_a_later_version_adds_are_no_error(make_run):
    path = make_run("a")
    edit(path / "run.json", lambda v: v.update(new="key"))
    edit_line(path / "metrics.jsonl", 0, lambda e: e.update(new="key"))
    edit(path / "layers.json", lambda v: v[0].update(new="key"))
    assert len(read(path).epochs) == 6


def test_an_older_run_has_no_layers_and_no_memory(make_run):
    path = make_run("a")
    for index in range(6):
        edit_line(path / "metrics.jsonl", index, lambda e: (e.pop("layers"), e.pop("memory")))
    run = read(path)
    assert (run.memory, run.last.layers) == (0, {})


def test_no_directory(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        read(tmp_path / "nowhere")


def test_a_directory_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="run.json"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "layers.json"])
def test_a_missing_file_is_named(make_run, name):
    path = make_run("a")
    (path / name).unlink()
    with pytest.raises(ValueError, match=name):
        read(path)


def test_an_unfinished_run_is_read_as_far_as_it_is(make_run):
    path = make_run("a")
    (path / "result.json").unlink()
    (path / "layers.json").unlink()
    file = path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    run = read(path)
    assert (run.finished, len(run.epochs), run.layers) == (False, 2, ())
    file.write_text("")
    with pytest.raises(ValueError, match="none yet"):
        read(path)


def test_a_line_cut_off_is_named(make_run):
    file = make_run("a") / "metrics.jsonl"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ValueError, match="metrics.jsonl, line 6"):
        read(file.parent)


def test_an_epoch_missing_at_the_end(make_run):
    file = make_run("a") / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="6 epochs.* got 5"):
        read(file.parent)


def test_epochs_out_of_order(make_run):
    path = make_run("a")
    edit_line(path / "metrics.jsonl", 2, lambda e: e.update(epoch=4))
    with pytest.raises(ValueError, match="epoch 2 .*line 3"):
        read(path)


def test_seconds_that_do_not_add_up(make_run):
    path = make_run("a")
    edit_line(path / "metrics.jsonl", 1, lambda e: e.update(total_seconds=e["total_seconds"] + 0.01))
    with pytest.raises(ValueError, match="total_seconds in .*line 2"):
        read(path)


def test_an_unknown_category_of_seconds(make_run):
    path = make_run("a")
    edit_line(path / "metrics.jsonl", 0, lambda e: e["seconds"].pop("levers"))
    with pytest.raises(ValueError, match="'levers' in .*line 1, seconds"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("test_accuracy", None, "'test_accuracy' in .* to be a finite number, got None"),
        ("test_accuracy", True, "'test_accuracy' in .* to be a finite number, got True"),
        ("train_loss", math.nan, "'train_loss' in .* to be a finite number, got nan"),
        ("sieved", 1.5, "'sieved' in .* to be an integer, got 1.5"),
        ("frozen", "layer1", "'frozen' in .* to be a list, got 'layer1'"),
        ("events", [{"kind": "freeze"}], "expected 'text' in .*events, got only 'kind'"),
        ("events", ["freeze"], "expected an object in .*events, got str"),
        ("memory", 1.5, "'memory' in .* to be an integer, got 1.5"),
        ("layers", [], "'layers' in .* to be an object"),
        ("layers", {"conv1": "0.9"}, "'conv1' in .*line 4, layers to be a finite number, got '0.9'"),
    ],
)
def test_an_epoch_of_another_schema(make_run, key, value, message):
    path = make_run("a")
    edit_line(path / "metrics.jsonl", 3, lambda e: e.update({key: value}))
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run.json", lambda v: v.pop("recipe"), "expected 'recipe' in .*run.json, got only 'environment'"),
        ("run.json", lambda v: v["recipe"].pop("method"), "expected 'method' in .*run.json, recipe"),
        ("run.json", lambda v: v["samples"].pop("test"), "expected 'test' in .*run.json, samples"),
        ("run.json", lambda v: v.update(version=1), "'version' in .*run.json to be a string, got 1"),
        ("run.json", lambda v: v["freezing"].pop("flops"), "freezing report, got KeyError.*freezing in .*run.json"),
        ("layers.json", lambda v: v[1].pop("kernel"), "expected 'kernel' in .*layers.json, layer 1"),
        (
            "layers.json",
            lambda v: v[0].update(runs_sparse=1),
            "'runs_sparse' in .* to be true or false, got 1",
        ),
    ],
)
def test_files_of_another_schema(make_run, name, change, message):
    path = make_run("a")
    edit(path / name, change)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_files_that_hold_something_else(make_run):
    path = make_run("a")
    (path / "layers.json").write_text("{}")
    with pytest.raises(ValueError, match="layers.json"):
        read(path)
    (path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="run.json"):
        read(path)
    (path / "run.json").write_text("not json")
    with pytest.raises(ValueError, match="run.json"):
        read(path)
