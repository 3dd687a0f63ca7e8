"""`spfde train`: flags, runs, comparison, and what it says when something does not fit."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from spfde import cli
from spfde.cli import comparison
from spfde.cli import train as cli_train
from spfde.train import Recipe, run_dir

SMALL = "--train-images 64 --test-images 32 --width 0.25 --threads 1 --layout contiguous --interval 1"


def spfde(arguments: str):
    return CliRunner().invoke(cli.build("train"), ["train", *arguments.split()], env={"COLUMNS": "200"})


def test_help_has_every_flag_with_its_text():
    text = re.sub(r"\s+", " ", spfde("--help").output.replace("│", " "))
    for item in dataclasses.fields(Recipe):
        assert f"--{item.name.replace('_', '-')} " in text
        assert item.metadata["help"] in text
    for flag in ("--compare", "--resume", "--overwrite", "--no-block-cosine"):
        assert flag in text


def test_flags_are_the_fields_of_the_recipe(monkeypatch):
    recipes = []
    monkeypatch.setattr(cli_train, "fit", lambda recipe, **options: recipes.append(recipe))
    monkeypatch.setattr(cli_train, "outcome", lambda name, result: name)
    assert spfde("--epochs 7 --lr 0.05 --sparsity 0.5 --no-block-cosine --layout channels_last --seed 3").exit_code == 0
    fields = {"epochs": 7, "lr": 0.05, "sparsity": 0.5, "block_cosine": False, "layout": "channels_last", "seed": 3}
    assert recipes == [Recipe(**fields)]


def test_a_comparison_ends_with_table_and_page(tmp_path):
    result = spfde(f"{SMALL} --compare dense --epochs 3 --freeze 0.05 --sparsity 0.5 --seed 1 --out {tmp_path}")
    assert result.exit_code == 0, result.output
    kept = {name: json.loads((tmp_path / name / run_dir.RUN).read_text())["recipe"] for name in ("dense", "spfde")}
    differ = {key for key in kept["dense"] if kept["dense"][key] != kept["spfde"][key]}
    own = {"topology", "init", "drop_fraction", "soft"}
    assert differ == {"method", "sparsity", "freeze", "sieve", "out"} | own
    page = tmp_path / "report.html"
    assert "<svg" in page.read_text(encoding="utf-8")
    assert result.output.index("dense: starts at epoch 0") < result.output.index("spfde: starts at epoch 0")
    assert "speed-up" in result.output
    assert f"report: {page}" in result.output


def test_the_control_has_as_few_epochs_as_take_the_time(tmp_path):
    dense = ("dense", Recipe(method="dense", epochs=10, out=str(tmp_path / "dense")), False)
    for seconds, epochs in ((30.0, 3), (30.1, 4), (1.0, 1), (89.0, 9)):
        name, recipe, goes_on = comparison.in_time(dense, 100.0, seconds, resume=True)
        assert (name, recipe.epochs, goes_on) == ("dense-in-time", epochs, False)
        assert recipe == dataclasses.replace(dense[1], epochs=epochs, out=str(tmp_path / "dense-in-time"))
    assert comparison.in_time(dense, 100.0, 90.5, resume=True) is None


def test_the_control_is_trained_last_and_told_beside_the_run(tmp_path, monkeypatch):
    took = {"dense": 10.0, "spfde": 2.5, "dense-in-time": 2.9}
    trained, shown = [], []

    def fit(recipe, **options):
        trained.append(recipe)
        return SimpleNamespace(training_seconds=took[Path(recipe.out).name])

    monkeypatch.setattr(cli_train, "fit", fit)
    monkeypatch.setattr(cli_train, "outcome", lambda name, result: name)
    monkeypatch.setattr(cli_train, "report", lambda console, runs: shown.extend(name for name, _, _ in runs))
    flags = f"--compare dense-in-time --epochs 8 --sparsity 0.5 --freeze 0.05 --out {tmp_path}"
    assert spfde(f"{SMALL} {flags}").exit_code == 0
    assert [(recipe.method, recipe.epochs) for recipe in trained] == [("dense", 8), ("spfde", 8), ("dense", 2)]
    assert shown == ["dense", "dense-in-time", "spfde"]
    assert json.loads((tmp_path / run_dir.RUN).read_text())["compare"] == "dense-in-time"
    trained.clear()
    assert spfde(f"--resume --out {tmp_path}").exit_code == 0 and len(trained) == 3  # as the directory says
    took["spfde"] = 10.0  # no faster: the dense run itself is the control
    trained.clear()
    assert spfde(f"--resume --out {tmp_path}").exit_code == 0 and len(trained) == 2


def test_a_comparison_and_a_run_do_not_share_a_directory(tmp_path):
    for name in ("run", "both"):
        (tmp_path / name).mkdir()
    run_dir.write_lines(tmp_path / "run" / run_dir.METRICS, [])
    result = spfde(f"{SMALL} --compare dense --out {tmp_path / 'run'}")
    assert "expected a directory for two runs" in str(result.exception)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [run_dir.METRICS]
    kept = {"compare": "dense", "recipe": Recipe(lr=0.3).to_dict()}
    run_dir.write_json(tmp_path / "both" / run_dir.RUN, kept)
    for flags in ("", "--overwrite"):
        result = spfde(f"{SMALL} {flags} --out {tmp_path / 'both'}")
        assert "expected a run directory, got" in str(result.exception)
        assert "holds a comparison of runs, try one in it, or another out" in str(result.exception)
    assert json.loads((tmp_path / "both" / run_dir.RUN).read_text()) == kept


def test_a_comparison_resumed_with_other_flags_keeps_its_own(tmp_path):
    kept = {"compare": "dense", "recipe": Recipe(lr=0.3, train_images=64).to_dict()}
    run_dir.write_json(tmp_path / run_dir.RUN, kept)
    result = spfde(f"--resume --lr 0.2 --out {tmp_path}")
    assert re.search(r"expected the recipe of .*run\.json, got another one \(lr: 0\.3, got 0\.2", str(result.exception))
    assert json.loads((tmp_path / run_dir.RUN).read_text()) == kept


def test_what_does_not_fit_is_told_before_the_baseline_trains(tmp_path):
    for flags, said in (
        ("--epochs 3 --freeze 0.9", "expected flops_reduction"),
        ("--model resnet21", "expected a model"),
        ("--dataset cifar", "expected a data set"),
    ):
        result = spfde(f"{SMALL} --compare dense {flags} --out {tmp_path}")
        assert isinstance(result.exception, ValueError) and said in str(result.exception)
        assert not run_dir.checkpoints(tmp_path / "dense")


def test_both_directories_are_checked_before_the_baseline_trains(tmp_path):
    (tmp_path / "spfde").mkdir()
    (tmp_path / "spfde" / run_dir.RESULT).write_text("{}")
    result = spfde(f"{SMALL} --compare dense --epochs 3 --freeze 0.05 --out {tmp_path}")
    assert "expected a run directory without a run" in str(result.exception)
    assert not run_dir.checkpoints(tmp_path / "dense")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--compare sparse --out x", "expected --compare dense or dense-in-time, got --compare sparse, try dense"),
        ("--compare dense", "expected a run directory with --compare, got none, try --out"),
        ("--resume", "expected a run directory with --resume, got none, try --out"),
        ("--resume --overwrite --out x", "expected --resume or --overwrite, got both, try one of them"),
        ("--compare dense --method dense --out x", "expected a method to compare with dense, got dense itself"),
        ("--epochs 0", "expected epochs to be an integer in [1, 10**9], got 0, try"),
        ("--method dense --sieve 0.5", "expected sieve to be 0 with method='dense', got 0.5"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = spfde(arguments)
    assert isinstance(result.exception, ValueError)
    assert said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_flags_left_out_are_those_of_the_run_to_resume(tmp_path):
    run_dir.write_json(tmp_path / run_dir.RUN, {"recipe": Recipe(lr=0.3, epochs=5).to_dict()})
    ((name, recipe, resume),), compare = comparison.plan({"out": str(tmp_path), "seed": 4}, None, True)
    assert (name, resume, compare) == ("spfde", True, None)
    assert recipe == Recipe(lr=0.3, epochs=5, seed=4, out=str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": {"lr": -1}}', '{"recipe": {"speed": 1}}'])
def test_a_directory_of_something_else_is_not_resumed(text, tmp_path):
    (tmp_path / run_dir.RUN).write_text(text)
    with pytest.raises(ValueError, match="expected a run's recipe in .*, got .*, try without --resume"):
        comparison.kept_run(tmp_path)


def test_a_data_set_that_is_wrong_and_a_loss_that_is_not_finite_end_in_one_line(monkeypatch):
    from spfde.train import Diverged

    for error in (TypeError("expected this"), Diverged("expected a finite loss")):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(cli_train, "fit", fail)
        result = spfde("--epochs 1 --freeze 0")
        assert isinstance(result.exception, ValueError) and str(result.exception) == str(error)
