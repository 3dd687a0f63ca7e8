"""What a comparison says: good news, bad news, noise, and runs that are not alike."""

from __future__ import annotations

import json

import pytest

from spfde.report import compare

FAST = {"kernels": 2.0, "step": 2.2, "data": 0.3, "levers": 0.2, "evaluation": 0.5, "checkpoint": 0.1}
SLOW = FAST | {"step": 12.0}


def verdict(make_run, **changes):
    dense = make_run("dense", "dense", accuracy=changes.pop("dense_accuracy", 0.97), flops=3e12)
    return compare([dense, make_run("sparse", **changes)]).verdicts[0]


def test_faster_and_less_accurate(make_run):
    found = verdict(make_run, accuracy=0.93, seconds=FAST, flops=3e11)
    assert found.headline.startswith("spfde trained 1.80x")
    assert "as fast as dense, to a test accuracy 4.0 percentage points lower." in found.headline
    assert "more than chance in the test samples explains" in found.notes[1]
    assert "test accuracy is 93.0% against 97.0%" in found.notes[0]


def test_slower_is_said_plainly(make_run):
    found = verdict(make_run, accuracy=0.97, seconds=SLOW)
    assert "spfde trained slower than dense, taking 1." in found.headline
    assert found.headline.endswith("to the same test accuracy.")
    assert not any("In that time" in note for note in found.notes)


def test_equal_times_are_not_called_faster(make_run):
    seconds = {"kernels": 0.0, "step": 7.9, "data": 0.3, "levers": 0.0, "evaluation": 0, "checkpoint": 0}
    found = verdict(make_run, method="dense", accuracy=0.98, seconds=seconds)
    assert "trained no faster than" in found.headline
    assert "1.0 percentage point higher" in found.headline


def test_small_differences_are_called_noise(make_run):
    found = verdict(make_run, accuracy=0.965)
    # 2 sqrt((0.97 * 0.03 + 0.965 * 0.035) / 2000) = 1.1 points
    assert "2,000 test samples cannot tell these accuracies apart" in found.notes[1]
    assert "1.1 percentage points" in found.notes[1]
    assert "one seed" in found.notes[1]


def test_how_far_the_baseline_was_in_the_same_time(make_run):
    report = compare([make_run("dense", "dense"), make_run("sparse")])
    dense, sparse = report.runs
    done = sum(clock <= sparse.training_seconds for clock in dense.clock)
    assert 0 < done < len(dense.epochs)
    accuracy = f"{100 * dense.epochs[done - 1].test_accuracy:.1f}%"
    assert f"dense had done {done} epochs of 6 and was at {accuracy}" in str(report.verdicts[0])


def test_a_baseline_that_had_not_finished_an_epoch(make_run):
    found = verdict(make_run, epochs=1, recipe={"epochs": 1}, seconds=dict.fromkeys(FAST, 0.1))
    assert "In that time dense did not finish its first epoch." in found.notes


def test_flops_and_dense_kernels(make_run):
    found = verdict(make_run, flops=3e11)
    assert "fewer FLOPs; on the clock that became 1.80x" in str(found)
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
    report = compare([make_run("d2", "dense"), make_run("s2", layers=layers)])
    assert "1 of its 3 sparse layers ran a dense kernel" in str(report.verdicts[0])


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
    assert warning.startswith("Not like for like: ")
    assert text in warning


def test_like_runs_have_no_warning(pair):
    assert compare(pair).verdicts[0].warnings == ()


def test_one_run_says_nothing_about_speed(make_run):
    (found,) = compare([make_run("only")]).verdicts
    assert found.headline.startswith("spfde reached 96.0% test accuracy after 27.8 s")
    assert "says nothing about speed" in str(found)


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
    with pytest.raises(TypeError, match=r"expected a list of run directories, got"):
        compare(str(run))
    with pytest.raises(ValueError, match=r"expected at least one run directory, got none"):
        compare([])
    with pytest.raises(ValueError, match=r"expected each run once, got .*a again"):
        compare([run, run.parent / "." / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected a run directory, got .*empty, which has no run.json"):
        compare([tmp_path / "empty"])
