"""What a comparison says: good news, bad news, noise, and runs that are not alike."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from spfde.report import compare
from spfde.report.settings import alike
from spfde.train import Recipe

FAST = {"kernels": 2.0, "step": 2.2, "data": 0.3, "levers": 0.2, "evaluation": 0.5, "checkpoint": 0.1}
SLOW = FAST | {"step": 12.0}


def verdict(make_run, **changes):
    dense = make_run("dense", "dense", accuracy=changes.pop("dense_accuracy", 0.97), flops=3e12)
    return compare([dense, make_run("sparse", **changes)]).verdicts[0]


def test_faster_and_less_accurate(make_run):
    found = str(verdict(make_run, accuracy=0.93, seconds=FAST, flops=3e11))
    for figure in ("1.80x", "4.0 percentage points lower", "93.0% against 97.0%"):
        assert figure in found


def test_slower_is_said_plainly(make_run):
    assert "slower" in verdict(make_run, accuracy=0.97, seconds=SLOW).headline


def test_equal_times_are_not_called_faster(make_run):
    seconds = {"kernels": 0.0, "step": 7.9, "data": 0.3, "levers": 0.0, "evaluation": 0, "checkpoint": 0}
    found = verdict(make_run, method="dense", accuracy=0.98, seconds=seconds)
    assert "no faster" in found.headline and "1.0 percentage point higher" in found.headline


def test_small_differences_are_called_noise(make_run):
    # 2 sqrt((0.97 * 0.03 + 0.965 * 0.035) / 2000) = 1.1 points
    assert "1.1 percentage points" in verdict(make_run, accuracy=0.965).notes[1]


def test_how_far_the_baseline_was_in_the_same_time(make_run):
    report = compare([make_run("dense", "dense"), make_run("sparse")])
    dense, sparse = report.runs
    done = sum(clock <= sparse.training_seconds for clock in dense.clock)
    assert 0 < done < len(dense.epochs)
    told = str(report.verdicts[0])
    assert f"{done} epochs of 6" in told and f"{100 * dense.epochs[done - 1].test_accuracy:.1f}%" in told


def test_layers_that_ran_dense_are_counted(make_run):
    layers = [
        {
            "name": f"conv{i}",
            "kind": "SparseConv2d",
            "shape": [4, 4, 3, 3],
            "sparsity": 0.5,
            "nnz": 72,
            "pattern": "unstructured",
            "kernel": "native" if i else "masked",
            "reason": "measured",
            "runs_sparse": bool(i),
        }
        for i in range(3)
    ]
    assert "1 of its 3" in str(verdict(make_run, layers=layers))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe": {"batch_size": 128}}, "batch_size (128 against 64)"),
        ({"recipe": {"seed": 1}}, "seed (1 against 0)"),
        ({"recipe": {"threads": 1}}, "threads (1 against 2)"),
        ({"run": {"environment": {"cpu": "Another", "torch": "2.13.0"}}}, "cpu (Another against A CPU)"),
        ({"run": {"samples": {"train": 8000, "test": 500}}}, "test samples (500 against 2000)"),
        ({"epochs": 3}, "epochs (3 against 6)"),
    ],
)
def test_runs_that_are_not_alike_are_called_so(make_run, changes, text):
    (warning,) = verdict(make_run, **changes).warnings
    assert text in warning


def test_a_field_that_a_recipe_gains_has_to_agree_unless_it_is_what_is_compared():
    @dataclass(frozen=True)
    class Later(Recipe):
        gained: int = 0

    assert set(alike(Later)) - set(alike()) == {"gained"}
    assert {"dataset", "lr", "epochs", "seed", "precision", "threads"} <= set(alike())
    assert not {"method", "sparsity", "topology", "freeze", "sieve", "out", "workers"} & set(alike())


def test_what_an_older_run_did_not_know_counts_as_its_default(make_run):
    path = make_run("older")
    about = json.loads((path / "run.json").read_text())
    del about["recipe"]["label_smoothing"]
    (path / "run.json").write_text(json.dumps(about))
    assert compare([make_run("dense", "dense"), path]).verdicts[0].warnings == ()


def test_like_runs_have_no_warning(pair):
    assert compare(pair).verdicts[0].warnings == ()


def test_labels_tell_runs_of_one_method_apart(make_run):
    report = compare([make_run("dense", "dense"), make_run("a/x"), make_run("a/y"), make_run("b/y")])
    dense, x, y, other = report.labels
    assert (dense, x) == ("dense", "spfde (x)")
    assert y.endswith("a/y)")
    assert other.endswith("b/y)")


def test_the_first_dense_run_is_the_baseline(make_run):
    sparse, dense, again = make_run("s"), make_run("d", "dense"), make_run("d2", "dense")
    report = compare([sparse, dense, again])
    assert [run.path.name for run in report.runs] == ["d", "s", "d2"]
    assert [run.path.name for run in compare([sparse, make_run("s2")]).runs] == ["s", "s2"]


def test_a_directory_of_runs_stands_for_them(make_run):
    root = make_run("both/dense", "dense").parent
    make_run("both/spfde")
    (root / "run.json").write_text(json.dumps({"compare": "dense"}))
    assert [run.method for run in compare([root]).runs] == ["dense", "spfde"]


def test_what_compare_refuses(make_run, tmp_path):
    run = make_run("a")
    with pytest.raises(TypeError, match="list of run directories"):
        compare(str(run))
    with pytest.raises(ValueError, match="at least one"):
        compare([])
    with pytest.raises(ValueError, match="once"):
        compare([run, run.parent / "." / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="run.json"):
        compare([tmp_path / "empty"])


def test_dense_training_in_the_same_time_is_the_control(make_run):
    runs = [make_run("dense", "dense"), make_run("less", "dense", epochs=3, accuracy=0.95), make_run("sparse")]
    report = compare(runs)
    assert report.labels == ("dense", "dense, 3 epochs", "spfde")
    (told,) = report.verdicts
    took = report.runs[1].training_seconds
    assert f"dense for 3 epochs ({took:.1f} s) came to a test accuracy 1.0 percentage point lower" in told.headline
    assert sum("test samples" in note for note in told.notes) == 2 and "fair control" not in str(told)
    assert report.html().count("<h1") == 1


def test_the_control_whose_time_is_nearest_counts(make_run):
    shorter = [make_run(f"less-{n}", "dense", epochs=n) for n in (1, 3)]
    (told,) = compare([make_run("dense", "dense"), *shorter, make_run("sparse")]).verdicts
    assert "dense for 3 epochs" in told.headline


def test_dense_runs_alone_are_judged_each(make_run):
    report = compare([make_run("dense", "dense"), make_run("less", "dense", epochs=3)])
    assert len(report.verdicts) == 1 and "Not like for like: epochs (3 against 6)" in str(report.verdicts[0])
    other = make_run("rate", "dense", epochs=3, recipe={"lr": 0.2})
    assert len(compare([make_run("dense-2", "dense"), other, make_run("sparse")]).verdicts) == 2


def test_an_unfinished_run_is_compared_with_nothing(make_run):
    dense, sparse = make_run("dense", "dense"), make_run("sparse")
    (sparse / "result.json").unlink()
    file = sparse / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    report = compare([sparse, dense])
    assert report.labels == ("dense", "spfde, unfinished")
    [verdict] = report.verdicts
    assert verdict.headline == "spfde, unfinished did 2 of 6 epochs: nothing can be compared yet."
    assert "--resume" in verdict.notes[-1] and "unfinished" in report.html()
    assert compare([sparse]).verdicts[0].headline == verdict.headline
